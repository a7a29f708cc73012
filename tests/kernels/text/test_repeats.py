from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text import native
from tallow.kernels.text.repeats import Pieces, find_repeats, sort_suffixes

MEGABYTE = 1_000_000


def fibonacci(length: int) -> bytes:
    """abaababaabaab…, which has as many repeats as a string can have without periods."""
    one, other = b"a", b"ab"
    while len(other) < length:
        one, other = other, other + one
    return other[:length]


def pieces_of(groups: Sequence[Sequence[tuple[int, bytes]]]) -> Pieces:
    found = [piece for group in groups for piece in group]
    return Pieces(
        np.frombuffer(b"".join(data for _, data in found), dtype=np.uint8),
        np.cumsum([0, *(len(data) for _, data in found)]),
        np.array([document for document, _ in found], dtype=np.int32),
        np.cumsum([0, *(len(group) for group in groups)]),
    )


small = st.one_of(
    st.binary(max_size=40), st.text("ab", max_size=60).map(str.encode), st.text("a\0é", max_size=20).map(str.encode)
)


@given(small)
def test_suffixes_are_sorted(text: bytes) -> None:
    for versions in ("fast", "reference"):
        with using(versions):
            assert sort_suffixes(text).tolist() == sorted(range(len(text)), key=lambda at: text[at:])


@pytest.mark.parametrize(
    "text",
    [
        b"a" * MEGABYTE,
        b"ab" * (MEGABYTE // 2),
        fibonacci(MEGABYTE),
        random.Random(0).randbytes(1000) * 1000,
        bytes(range(256)) * 3906,
    ],
)
def test_suffixes_of_long_repeats_take_no_longer(text: bytes) -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    begin = time.process_time()
    order = sort_suffixes(text)
    assert time.process_time() - begin < 1
    assert np.array_equal(np.sort(order), np.arange(len(text)))
    rank = np.empty(len(text) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(text)), -1
    symbols = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    assert (np.diff(symbols[order] * 2 * len(text) + rank[order + 1]) > 0).all()


utf8 = st.text("ab", max_size=30).map(str.encode)
numbered = st.lists(
    st.lists(st.tuples(st.integers(0, 2), utf8), max_size=4).map(
        lambda group: sorted(group, key=lambda piece: piece[0])
    ),
    max_size=3,
)


@given(numbered, st.integers(1, 6), st.booleans())
def test_repeats_are_those_of_brute_force(groups: list[list[tuple[int, bytes]]], window: int, within: bool) -> None:
    expected = set()
    number = 0
    for group in groups:
        before: list[tuple[int, bytes]] = []
        for document, data in group:
            for at in range(len(data) - window + 1):
                here = data[at : at + window]
                if any(here == other and (within or owner != document) for owner, other in before):
                    expected.add((number, at))
                before.append((document, here))
            number += 1
    for versions in ("fast", "reference"):
        with using(versions):
            found = find_repeats(pieces_of(groups), window, within).tolist()
        assert {(piece, at) for piece, begin, end in found for at in range(begin, end)} == expected
        assert all(left[0] < right[0] or left[2] < right[1] for left, right in pairwise(found))


def test_long_repeats_take_no_longer() -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    copy = random.Random(1).randbytes(1000).replace(b"\xff", b"")
    begin = time.process_time()
    for group, different in (
        ([(0, b"a" * MEGABYTE)], 1),
        ([(0, fibonacci(MEGABYTE))], 201),  # one more than there are bytes
        ([(number, copy) for number in range(1000)], len(copy) - 199),
    ):
        found = find_repeats(pieces_of([group]), 200, within=True)
        windows = sum(len(data) - 199 for _, data in group)
        assert np.diff(found[:, 1:]).sum() == windows - different
    assert time.process_time() - begin < 3
