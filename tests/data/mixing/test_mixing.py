"""Rows of several domains come in exact shares, and any place of the run can be computed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.data.dataset import TokenDataset
from tallow.data.manifest import ShardRecord, SourceRecord, TokenCounts, TokenManifest, save_manifest
from tallow.data.mixing.mixture import MixtureConfig, apportion, domain_weights, limit_epochs, sources_of
from tallow.data.mixing.order import BLOCK, MixedOrder
from tallow.data.mixing.plan import plan_order
from tallow.data.packing import Packing
from tallow.data.shards import LINEAGE_SCHEMA
from tallow.errors import DataError, UsageError
from tallow.parallel import Position

shares = st.lists(st.integers(0, 1000), min_size=1, max_size=7).filter(any)


def write_tokens(directory: Path, shards: Sequence[Sequence[tuple[str, list[int]]]]) -> Path:
    """Shards of documents: the source and the ids of each."""
    train = directory / "train"
    train.mkdir(parents=True)
    records, number = [], 0
    for name, documents in ((f"shard-{place:05}", shard) for place, shard in enumerate(shards)):
        sizes = [len(ids) for _, ids in documents]
        tokens = np.array(list(chain.from_iterable(ids for _, ids in documents)), dtype=np.uint16)
        np.save(train / f"{name}.npy", tokens)
        np.save(train / f"{name}.documents.npy", np.cumsum([0, *sizes[:-1]]).astype(np.uint64))
        lineage = {
            "id": [f"id{number + place}" for place in range(len(documents))],
            "source": [source for source, _ in documents],
            "offset": range(len(documents)),
        }
        number += len(documents)
        pq.write_table(pa.table(lineage, schema=LINEAGE_SCHEMA), train / f"{name}.lineage.parquet")
        records.append(ShardRecord(name=name, tokens=len(tokens), documents=len(documents)))
    counts = TokenCounts(
        tokens=sum(each.tokens for each in records), documents=number, bytes=1, shards=tuple(records)
    )  # fmt: skip
    names = sorted({source for shard in shards for source, _ in shard})
    sources = tuple(SourceRecord(name=name, sha256="", documents=1, bytes=1) for name in names)
    manifest = TokenManifest(
        tokenizer="", vocab_size=100, eos_id=0, dtype="uint16", splits={"train": counts}, sources=sources
    )
    save_manifest(manifest, directory)
    return directory


@given(shares, st.integers(10, 2000))
def test_seats_are_within_one_of_shares(weights: list[int], seats: int) -> None:
    exact = [weight / sum(weights) for weight in weights]
    counts = apportion(exact, seats)
    assert sum(counts) == seats
    assert all((count > 0) == (weight > 0) for count, weight in zip(counts, weights, strict=True))
    rare = sum(0 < share * seats < 1 for share in exact)
    assert all(abs(count - share * seats) < 1 + rare for count, share in zip(counts, exact, strict=True))


@settings(max_examples=10)
@given(shares, st.integers(0, 2**70), st.integers(0, 3 * BLOCK), st.integers(1, 9))
def test_shares_are_exact_in_each_block_and_near_everywhere(weights: list[int], seed: int, at: int, size: int) -> None:
    rows = [977 * number + 333 for number in range(len(weights))]
    exact = np.array(weights) / sum(weights)
    order = MixedOrder(rows, exact.tolist(), seed)
    numbers = np.array(order.numbers(range(2 * BLOCK)))
    owners = np.searchsorted(np.cumsum(rows), numbers % sum(rows), side="right")
    counts = np.stack([np.cumsum(owners == domain) for domain in range(len(rows))])
    for block in (1, 2):
        assert counts[:, block * BLOCK - 1].tolist() == (block * order.counts).tolist()
    assert (np.abs(order.counts - exact * BLOCK) <= 1 + np.sum((exact > 0) & (exact * BLOCK < 1))).all()
    # between the ends of blocks no domain is further ahead than stretches and their number allow
    expected = order.counts[:, None] / BLOCK * np.arange(1, 2 * BLOCK + 1)
    assert np.abs(counts - expected).max() <= 1 + len(rows) / 2
    # any places can be asked for, in any pieces
    whole = order.numbers(range(at, at + size))
    assert [number for place in range(at, at + size) for number in order.numbers(range(place, place + 1))] == whole
    assert MixedOrder(rows, exact.tolist(), seed).numbers(range(at, at + size)) == whole
    for domain, count in enumerate(rows):  # each domain goes through all its rows before one comes again
        epochs, places = np.divmod(numbers[owners == domain], sum(rows))
        assert (epochs == np.arange(len(epochs)) // count).all()
        first = places[:count] - sum(rows[:domain])
        assert sorted(first.tolist()) == sorted(set(first.tolist()))


def test_domains_do_not_keep_step_with_processes() -> None:
    order = MixedOrder([100, 100], [0.5, 0.5], seed=0)
    owners = np.array(order.numbers(range(BLOCK))) % 200 >= 100
    for world in (2, 4, 8):
        parts = [owners[rank::world].mean() for rank in range(world)]
        assert max(parts) - min(parts) < 0.1


def test_limits_on_epochs() -> None:
    weights, rows = {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.0}, {"a": 10, "b": 1000, "c": 1000, "d": 0}
    free = limit_epochs(weights, rows, 40, 4)
    assert free == pytest.approx(weights)
    tight = limit_epochs(weights, rows, 400, 4)
    assert tight == pytest.approx({"a": 0.1, "b": 0.9 * 0.6, "c": 0.9 * 0.4, "d": 0})
    assert limit_epochs({"a": 0.5, "b": 0.5}, {"a": 10, "b": 90}, 400, 4) == pytest.approx({"a": 0.1, "b": 0.9})
    with pytest.raises(UsageError, match="but in 1 epochs its domains give 2,010"):
        limit_epochs(weights, rows, 2011, 1)
    with pytest.raises(UsageError, match="domain d has no tokens"):
        limit_epochs({**weights, "d": 0.1}, rows, 10, 1)


def test_weights_by_temperature() -> None:
    tokens = {"large": 900, "small": 100}
    assert domain_weights(MixtureConfig(), tokens) == pytest.approx({"large": 0.9, "small": 0.1})
    assert domain_weights(MixtureConfig(temperature=2), tokens) == pytest.approx({"large": 0.75, "small": 0.25})
    fixed = MixtureConfig(weights={"large": 1, "small": 4})
    assert domain_weights(fixed, tokens) == pytest.approx({"large": 0.2, "small": 0.8})


def test_sources_of_domains() -> None:
    sources = ["data/books/a.txt", "data/books/old/b.txt", "data/web/c.jsonl", "tallow:pepys"]
    config = MixtureConfig(domains={"old": ("books/old/*",), "books": ("books/*", "tallow:*"), "rest": ("*",)})
    assert sources_of(config, sources) == {
        "old": (sources[1],),
        "books": (sources[0], sources[3]),
        "rest": (sources[2],),
    }
    assert list(sources_of(MixtureConfig(), sources)) == sources
    with pytest.raises(UsageError, match=r"source data/web/c.jsonl is in no domain"):
        sources_of(MixtureConfig(domains={"books": ("books/*", "tallow:*")}), sources)
    with pytest.raises(UsageError, match=r"domain boks of mixture.domains has no source"):
        sources_of(MixtureConfig(domains={"boks": ("boks/*",), "rest": ("*",)}), sources)
    with pytest.raises(UsageError, match=r"differ in data/web/c.jsonl"):
        sources_of(MixtureConfig(weights=dict.fromkeys([*sources[:2], sources[3]], 1.0)), sources)
    with pytest.raises(ValueError, match="rest is not both in domains and in weights"):
        MixtureConfig(domains={"a": ("*",)}, weights={"a": 1, "rest": 1})
    with pytest.raises(ValueError, match="both set"):
        MixtureConfig(weights={"a": 1}, temperature=2)


documents = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 99), max_size=9).map(lambda ids: [*ids, 0])),
    min_size=1,
    max_size=8,
)


@given(st.lists(documents, min_size=1, max_size=3), st.integers(1, 6), st.sampled_from(("split", "best_fit")))
def test_rows_are_of_one_domain(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[tuple[str, list[int]]]],
    length: int,
    packing: Packing,
) -> None:
    """All tokens of a domain but its first (or each document's first) are targets once, in rows that are its own."""
    directory = write_tokens(tmp_path_factory.mktemp("any") / "tokens", shards)
    if sum(len(ids) for shard in shards for _, ids in shard) < 2:
        return
    domains = {"first": ("a",), "second": ("c", "d")}
    texts = {name: [ids for shard in shards for source, ids in shard if source in own] for name, own in domains.items()}
    expected = {
        name: [id for ids in own for id in ids[1:]] if packing == "best_fit" else list(chain.from_iterable(own))[1:]
        for name, own in texts.items()
    }
    if not any(expected.values()):
        with pytest.raises(DataError, match="no document"):
            TokenDataset(directory, "train", length, 0, packing, domains)
        return
    dataset = TokenDataset(directory, "train", length, 0, packing, domains)
    number = 0
    for name, stream in dataset.streams.items():
        targets: list[int] = []
        starts = 0
        for _ in range(stream.num_rows):
            row = dataset.sequence(number)
            real = row.trainable_BT[0]
            same = row.documents_BT[0][1:] == row.documents_BT[0][:-1]
            shown = row.tokens_BT[0][1:][real[1:] & same if packing == "best_fit" else real[1:]]
            targets += shown.tolist()
            starts += int((row.documents_BT[0].diff() > 0).sum())
            number += 1
        assert sorted(targets) == sorted(expected[name])
        if packing == "split":
            assert targets == expected[name]
        assert stream.num_tokens == sum(map(len, texts[name]))
    assert number == dataset.num_sequences


def test_a_mixture_of_real_rows(tmp_path: Path) -> None:
    shards = [[("a", [1] * 30 + [0]), ("b", [2] * 30 + [0])] * 3, [("b", [2] * 200 + [0]), ("c", [3] * 50 + [0])]]
    directory = write_tokens(tmp_path / "tokens", shards)
    config = MixtureConfig(weights={"a": 3, "b": 1, "c": 0})
    dataset = TokenDataset(directory, "train", 8, 7, "split", sources_of(config, ["a", "b", "c"]))
    order, told = plan_order(dataset, 40, config, None)
    assert told["a"].epochs == pytest.approx(0.75 * 40 / math.ceil(92 / 8))
    kinds: Counter[int] = Counter()
    for row in order.numbers(range(40)):
        tokens = set(dataset.sequence(row).tokens_BT.flatten().tolist()) - {0}
        assert len(tokens) == 1
        kinds[tokens.pop()] += 1
    assert abs(kinds[1] - 30) <= 2
    assert kinds[3] == 0
    with pytest.raises(UsageError, match=r"in 0.5 epochs its domains give 24"):
        plan_order(dataset, 40, config.model_copy(update={"max_epochs": 0.5}), None)
    lineage = directory / "train" / "shard-00000.lineage.parquet"
    pq.write_table(pq.read_table(lineage).slice(1), lineage)
    with pytest.raises(DataError, match="does not fit"):
        TokenDataset(directory, "train", 8, 7, "split", {"a": ("a",)})


def test_any_number_of_processes_takes_the_same_rows() -> None:
    order = MixedOrder([50, 90, 7], [0.2, 0.5, 0.3], seed=4)
    for places in (range(24), range(BLOCK - 10, BLOCK + 14)):
        whole = order.numbers(places)
        for world in (2, 3, 4):
            shares = [Position(rank, world).share(order.numbers(places)) for rank in range(world)]
            assert sorted(chain.from_iterable(shares)) == sorted(whole)
            assert all(share == whole[rank::world] for rank, share in enumerate(shares))
