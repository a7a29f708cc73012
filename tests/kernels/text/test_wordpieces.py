"""WordPieces are those of the definition, exact beyond 32 bits, and others than those of BPE where the scores are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text.merges import Merge, learn_merges
from tallow.kernels.text.wordpieces import learn_wordpieces

LETTERS = [bytes([letter]) for letter in b"abcd"]
VERSIONS: tuple[Versions, ...] = ("fast", "reference")


def words_of(words: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[Any, Any, Any, list[bytes]]:
    symbols = np.array([symbol for word in words for symbol in word], dtype=np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    return symbols, ends, np.array(counts, dtype=np.int64), LETTERS


@given(
    words=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=12),
    counts=st.lists(st.one_of(st.integers(1, 5), st.integers(1, 2**56)), min_size=12, max_size=12),
    vocab_size=st.integers(4, 40),
    min_count=st.integers(0, 4),
)
def test_it_is_what_the_definition_says(
    words: list[list[int]], counts: list[int], vocab_size: int, min_count: int
) -> None:
    given = words_of(words, counts[: len(words)])
    with using("reference"):
        expected = learn_wordpieces(*given, vocab_size, min_count)
    assert learn_wordpieces(*given, vocab_size, min_count) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_it_differs_from_bpe_where_the_scores_do(version: Versions) -> None:
    # "ab" is the most frequent pair, but a and b are everywhere; c and d are always together
    given = words_of([[0, 1], [0, 0], [1, 1], [1, 0], [2, 3]], [50, 40, 40, 30, 20])
    with using(version):
        assert learn_wordpieces(*given, 5, 2) == [Merge(2, 3, 4, 20)]
        assert learn_merges(*given, 5, 2) == [Merge(0, 1, 4, 50)]


@pytest.mark.parametrize("version", VERSIONS)
def test_rare_pairs_are_left_out(version: Versions) -> None:
    given = words_of([[0, 1], [0, 0], [1, 1], [1, 0], [2, 3]], [50, 40, 40, 30, 20])
    with using(version):
        assert [merge.frequency for merge in learn_wordpieces(*given, 9, 21)] == [50, 40, 30, 40]


@pytest.mark.parametrize("version", VERSIONS)
def test_scores_that_differ_in_the_62nd_bit_are_told_apart(version: Versions) -> None:
    # the score of a pair that is always together is 1 / count: the rarer pair goes first, by one of 2^61
    with using(version):
        assert learn_wordpieces(*words_of([[0, 1], [2, 3]], [2**61, 2**61 - 1]), 5, 1) == [Merge(2, 3, 4, 2**61 - 1)]
        assert learn_wordpieces(*words_of([[0, 1], [2, 3]], [2**61 - 1, 2**61]), 5, 1) == [Merge(0, 1, 4, 2**61 - 1)]


@pytest.mark.parametrize("version", VERSIONS)
def test_of_equal_scores_the_most_frequent_goes_first(version: Versions) -> None:
    # 4 / (4 · 8) and 2 / (2 · 8)
    given = words_of([[2, 1], [0, 1], [1, 3]], [4, 2, 2])
    with using(version):
        merges = learn_wordpieces(*given, 6, 1)
    assert merges[0] == Merge(2, 1, 4, 4)
    assert merges[1].frequency == 2
