"""The substrings are those that counting all of them finds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text import native
from tallow.kernels.text.substrings import Substrings, best_substrings

VERSIONS: tuple[Versions, ...] = ("fast", "reference")


def words_of(words: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[Any, Any, Any]:
    symbols = np.array([symbol for word in words for symbol in word], dtype=np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    return symbols, ends, np.array(counts, dtype=np.int64)


def spelled(symbols: Any, found: Substrings) -> list[tuple[tuple[int, ...], int]]:
    return [
        (tuple(symbols[place : place + length].tolist()), count)
        for place, length, count in zip(*(column.tolist() for column in found), strict=True)
    ]


@given(
    words=st.lists(st.lists(st.one_of(st.integers(0, 2), st.just(0x10FFFF)), max_size=12), max_size=12),
    counts=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 2**55)), min_size=12, max_size=12),
    longest=st.integers(1, 9),
    min_count=st.integers(0, 4),
    most=st.integers(0, 30),
)
def test_it_is_what_the_definition_says(
    words: list[list[int]], counts: list[int], longest: int, min_count: int, most: int
) -> None:
    given = words_of(words, counts[: len(words)])
    with using("reference"):
        expected = spelled(given[0], best_substrings(*given, longest, min_count, most))
    assert spelled(given[0], best_substrings(*given, longest, min_count, most)) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_found(version: Versions) -> None:
    a, b, c, d = range(4)
    given = words_of([[a, b, c, d], [a, b, c], [b, c]], [1, 2, 2**40])
    with using(version):
        # "ab" always goes on with c; "bcd" is there only once
        assert spelled(given[0], best_substrings(*given, 16, 2, 10)) == [((b, c), 2**40 + 3), ((a, b, c), 3)]


def test_one_long_word_takes_no_longer_than_short_ones() -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    begin = time.process_time()
    found = best_substrings(*words_of([[7] * 300_000], [1]), 16, 2, 1000)
    assert time.process_time() - begin < 1
    assert found.lengths.tolist() == [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert found.counts.tolist() == [300_001 - length for length in found.lengths]
