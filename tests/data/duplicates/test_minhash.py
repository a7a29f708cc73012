"""MinHash against exact similarities, and clusters against brute force."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tallow.data.duplicates.clusters import cluster
from tallow.data.duplicates.minhash import (
    ID,
    PAIRS,
    MinHashSettings,
    band_rows,
    chain_keys,
    compare,
    detection_probability,
    document_sets,
    same_sets,
    shared_buckets,
    sign_documents,
    split_rows,
)
from tallow.kernels.text.minhash import draw_permutations, jaccard, shingle_sets, sign
from tallow.kernels.text.words import hash_chain

WORDS = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(500)]


def with_changes(count: int, seed: int, words: int = 200) -> list[str]:
    """A text and versions of it in which more and more words are others."""
    chance = random.Random(seed)
    text = chance.choices(WORDS, k=words)
    return [
        " ".join(chance.choice(WORDS) if chance.random() < 0.3 * version / count else word for word in text)
        for version in range(count)
    ]


def as_ids(names: Iterable[str]) -> pa.FixedSizeBinaryArray:
    return pa.array([name.rjust(16, "0").encode() for name in names], ID)


def names_of(column: pa.ChunkedArray, length: int) -> list[str]:
    return [id.decode()[-length:] for id in column.to_pylist()]


def clusters_of(
    ids: list[str], texts: list[str], settings: MinHashSettings, pieces: int = 1, parts: int = 1
) -> pa.Table:
    array, texts_array = as_ids(ids), pa.array(texts, pa.string())
    bounds = np.linspace(0, len(ids), parts + 1).astype(int)
    signed = pa.concat_tables(
        [
            found.append_column("part", pa.array([part] * len(found), pa.int32()))
            for part, (begin, end) in enumerate(pairwise(bounds))
            for found in [sign_documents(array[begin:end], texts_array[begin:end], settings)]
        ]
    )
    same = [same_sets(piece) for piece in split_rows(signed, pieces)]
    rows = band_rows(pa.concat_tables([piece.firsts for piece in same]))
    pairs = [piece.pairs for piece in same]
    for piece in split_rows(rows, pieces):
        pairs.append(compare(shared_buckets(piece), document_sets(array, texts_array, settings), settings).pairs)
    return cluster(pa.concat_tables(pairs))


def by_brute_force(ids: list[str], texts: list[str], settings: MinHashSettings) -> pa.Table:
    firsts, seconds = np.array(list(combinations(range(len(ids)), 2))).T
    found = jaccard(shingle_sets(pa.array(texts), settings.shingle_words), firsts, seconds) >= settings.threshold
    names = as_ids(ids)
    return cluster(pa.table({"first": names.take(firsts[found]), "second": names.take(seconds[found])}))


def test_s_curve() -> None:
    expected = [0.565, 0.772, 0.924, 0.988]
    assert detection_probability([0.70, 0.75, 0.80, 0.85], 14, 8) == pytest.approx(expected, abs=5e-4)


def test_estimates_are_near_exact_similarities() -> None:
    texts = pa.array(with_changes(20, seed=1))
    least_DH = sign(texts, 2, draw_permutations(2000, seed=1)).least_DH
    firsts, seconds = np.array(list(combinations(range(20), 2))).T
    exact = jaccard(shingle_sets(texts, 2), firsts, seconds)
    estimates = (least_DH[firsts] == least_DH[seconds]).mean(axis=1)
    assert exact.max() - exact.min() > 0.5
    assert np.abs(estimates - exact).max() < 4 * 0.5 / np.sqrt(2000)


def test_bands_are_met_as_often_as_the_curve_says() -> None:
    """Two sets of similarity 0.6 under many permutations."""
    common, left, right = WORDS[:120], WORDS[120:160], WORDS[160:200]
    texts = pa.array([" ".join(common + left), " ".join(common + right)])
    least_DH = sign(texts, 1, draw_permutations(4 * 2000, seed=5)).least_DH
    keys_DB = chain_keys(least_DH.reshape(2, 2000, 4))
    assert (keys_DB[0] == keys_DB[1]).mean() == pytest.approx(0.6**4, abs=0.03)


def test_keys_of_bands_wrap_as_python_integers() -> None:
    values_DBR = np.random.default_rng(0).integers(0, 2**61, (3, 2, 8), dtype=np.uint64)
    expected = [[hash_chain(band) for band in document] for document in values_DBR.tolist()]
    assert chain_keys(values_DBR).tolist() == expected


def test_clusters_are_those_of_brute_force() -> None:
    texts = [text for seed in range(12) for text in with_changes(8, seed)] + ["few words", "", "w " * 300, "w " * 200]
    ids = [f"{number * 7919 % 1009:04}" for number in range(len(texts))]
    settings = MinHashSettings(shingle_words=2, bands=40, rows=5, threshold=0.7)
    found = clusters_of(ids, texts, settings)
    assert found.equals(by_brute_force(ids, texts, settings))
    assert len(found) > 30
    assert found["size"].to_numpy().max() > 2
    assert all(row["survivor"] <= row["id"] for row in found.to_pylist())


def test_nothing_depends_on_order_or_pieces() -> None:
    texts = [text for seed in range(5) for text in with_changes(8, seed)]
    ids = [f"{number:03}" for number in range(len(texts))]
    settings = MinHashSettings(shingle_words=2, threshold=0.7, exhaustive=2)
    expected = clusters_of(ids, texts, settings)
    assert len(expected) > 10
    order = random.Random(0).sample(range(len(ids)), len(ids))
    ids, texts = [ids[i] for i in order], [texts[i] for i in order]
    for pieces, parts in ((1, 1), (5, 3)):
        assert clusters_of(ids, texts, settings, pieces, parts).equals(expected)


def test_large_buckets_take_few_comparisons() -> None:
    """All documents in all buckets: by representatives that is linear, and finds each group."""
    groups = [with_changes(1, seed, words=50)[0] for seed in range(5)]
    texts = [f"{groups[number % 5]} {WORDS[number // 5]}" for number in range(400)]
    ids = as_ids(f"{number:03}" for number in range(len(texts)))
    settings = MinHashSettings(bands=1)
    shared = pa.table({"band": pa.array([0] * 400, pa.int16()), "key": pa.array([1] * 400, pa.uint64()), "id": ids})
    sets = document_sets(ids, pa.array(texts), settings)
    compared = compare(shared, sets, settings)
    assert compared.counts == {"comparisons": 399 + 319 + 239 + 159 + 79, "uncompared": 0}
    found = cluster(compared.pairs)
    assert names_of(found["survivor"], 3) == [f"{number % 5:03}" for number in range(400)]
    capped = compare(shared, sets, MinHashSettings(bands=1, representatives=3))
    assert capped.counts == {"comparisons": 399 + 319 + 239, "uncompared": 160}


def test_pairs_are_verified_and_unlike_ones_left_out() -> None:
    texts = [" ".join(WORDS[:100]), " ".join(WORDS[:90] + WORDS[200:210]), " ".join(WORDS[300:400])]
    ids = as_ids(["b", "a", "c"])
    shared = pa.table({"band": pa.array([0] * 3, pa.int16()), "key": pa.array([7] * 3, pa.uint64()), "id": ids})
    for threshold, pairs in ((0.8, [("a", "b")]), (0.85, [])):
        settings = MinHashSettings(threshold=threshold)
        found = compare(shared_buckets(shared), document_sets(ids, pa.array(texts), settings), settings).pairs
        assert list(zip(names_of(found["first"], 1), names_of(found["second"], 1), strict=True)) == pairs
        assert found["similarity"].to_pylist() == [86 / 106][: len(pairs)]


def test_nothing_at_all() -> None:
    assert clusters_of([], [], MinHashSettings()).num_rows == 0
    assert clusters_of(["a", "b"], ["", "too few words"], MinHashSettings()).num_rows == 0
    assert cluster(PAIRS.empty_table()).num_rows == 0


@pytest.mark.shared_data
def test_clusters_of_a_corpus(shared_data: Callable[..., Path]) -> None:
    """Shakespeare's plays, each in two spellings, in pieces, with copies that are changed a little."""
    chance = random.Random(0)
    texts = []
    with lzma.open(
        shared_data("corpus_english_books", "shakespeare_milton.en.jsonl.xz"), "rt", encoding="utf-8"
    ) as file:
        for line in file:
            text = json.loads(line)["text"]
            texts += [text[at : at + 2000] for at in range(0, 12000, 2000)]
            if len(texts) > 240:
                break
    for text in texts[:120]:
        words = text.split(" ")
        for _ in range(chance.randrange(8)):
            words[chance.randrange(len(words))] = "changed"
        texts.append(" ".join(words))
    ids = [f"{number:05}" for number in chance.sample(range(100_000), len(texts))]
    settings = MinHashSettings()
    found, exact = clusters_of(ids, texts, settings), by_brute_force(ids, texts, settings)
    survivors, expected = (
        dict(zip(table["id"].to_pylist(), table["survivor"].to_pylist(), strict=True)) for table in (found, exact)
    )
    right = sum(survivors.get(id) == survivor for id, survivor in expected.items())
    assert len(expected) > 150
    assert set(survivors) <= set(expected)
    assert right >= 0.95 * len(expected)
