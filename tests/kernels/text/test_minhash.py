from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.text.strange import texts

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text.minhash import PRIME, Permutations, connect, draw_permutations, jaccard, shingle_sets, sign
from tallow.kernels.text.words import folded, words

VERSIONS: tuple[Versions, ...] = ("fast", "reference")


@given(st.lists(texts, max_size=4), st.integers(0, 2), st.integers(1, 4))
def test_fast_signatures_are_the_reference(given_texts: list[str], left_out: int, shingle_words: int) -> None:
    array = pa.array(given_texts, pa.string()).slice(left_out)
    permutations = draw_permutations(19, seed=3)
    found = []
    for versions in VERSIONS:
        with using(versions):
            signatures, sets = sign(array, shingle_words, permutations), shingle_sets(array, shingle_words)
        found.append([values.tolist() for values in (*signatures, *sets)])
        assert np.array_equal(np.diff(sets.offsets), signatures.sizes)
    assert found[0] == found[1]


def test_products_are_exact() -> None:
    """The greatest factors and summands, whose products have 122 bits."""
    text = pa.array(["one two three four five six seven eight nine ten"])
    a = np.array([PRIME - 1, PRIME - 2, 2**60, 2**32 - 1, 2**32, 1, 1], dtype=np.uint64)
    b = np.array([PRIME - 1, 1, PRIME - 1, 0, 2**60, 0, PRIME - 1], dtype=np.uint64)
    with using("fast"):
        signature = sign(text, 1, Permutations(a, b)).least_DH[0].tolist()
        shingles = shingle_sets(text, 1).shingles.tolist()
    assert max(shingles) > 2**60
    exact = [
        min((factor * shingle + summand) % PRIME for shingle in shingles)
        for factor, summand in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert signature == exact


def test_permutations_stay_the_same() -> None:
    permutations = draw_permutations(112, seed=1)
    assert len(set(permutations.a.tolist())) == len(set(permutations.b.tolist())) == 112
    assert permutations.a.min() > 0
    assert max(permutations.a.max(), permutations.b.max()) < PRIME
    assert np.array_equal(draw_permutations(112, seed=1).a, permutations.a)
    assert not np.array_equal(draw_permutations(112, seed=2).a, permutations.a)


def test_shingles_are_of_folded_words() -> None:
    same = pa.array(["The CAFÉ, in 1999: don't!", "the cafe in 2024 don’t", "the cafe in 2 don't now"])
    for versions in VERSIONS:
        with using(versions):
            signatures = sign(same, 5, draw_permutations(8, 1))
        assert signatures.sizes.tolist() == [1, 1, 2]
        assert signatures.keys[0] == signatures.keys[1] != signatures.keys[2]
        assert np.array_equal(signatures.least_DH[0], signatures.least_DH[1])


@given(st.lists(texts, min_size=1, max_size=4))
def test_jaccard_is_that_of_word_sets(given_texts: list[str]) -> None:
    shingles = []
    for text in given_texts:
        plain = [folded(word.text) for word in words(text) if word.plain]
        shingles.append(set(pairwise(plain)))
    rows = np.arange(len(given_texts))
    firsts, seconds = np.repeat(rows, len(rows)), np.tile(rows, len(rows))
    expected = [
        len(shingles[first] & shingles[second]) / max(1, len(shingles[first] | shingles[second]))
        for first, second in zip(firsts, seconds, strict=True)
    ]
    for versions in VERSIONS:
        with using(versions):
            sets = shingle_sets(pa.array(given_texts, pa.string()), 2)
            assert jaccard(sets, firsts, seconds).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_connect(pairs: list[tuple[int, int]]) -> None:
    groups = {number: {number} for number in range(20)}
    for first, second in pairs:
        both = groups[first] | groups[second]
        groups |= dict.fromkeys(both, both)
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    for versions in VERSIONS:
        with using(versions):
            assert connect(array[:, 0], array[:, 1], 20).tolist() == [min(groups[number]) for number in range(20)]


def test_long_chains_connect() -> None:
    """As long as the recursion of a peer could not follow."""
    numbers = np.arange(100_000)
    for firsts, seconds in ((numbers[1:], numbers[:-1]), (numbers[:0:-1], numbers[-2::-1])):
        assert not connect(firsts, seconds, len(numbers)).any()
