from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.text.strange import texts

from tallow.kernels.dispatch import using
from tallow.kernels.text import native
from tallow.kernels.text.segments import find_segments

few_letters = st.one_of(texts, st.text("ab", max_size=60))


@given(st.lists(few_letters, max_size=4), st.integers(0, 2), st.integers(1, 9), st.integers(0, 8))
def test_fast_segments_are_the_reference(given_texts: list[str], left_out: int, gram: int, more: int) -> None:
    array = pa.array(given_texts, pa.string()).slice(left_out)
    found = []
    for versions in ("fast", "reference"):
        with using(versions):
            found.append([values.tolist() for values in find_segments(array, gram + more, gram)])
    assert found[0] == found[1]


@given(st.lists(few_letters, max_size=4), st.integers(1, 5), st.integers(0, 5))
def test_equal_windows_are_known_alike(given_texts: list[str], gram: int, more: int) -> None:
    """Each window is in one segment; equal ones are in segments of the same key, or in one where that is said."""
    window = gram + more
    segments = find_segments(pa.array(given_texts, pa.string()), window, gram)
    seen: dict[bytes, tuple[int, int]] = {}
    places = set()
    for number, (row, begin, count, again, key) in enumerate(zip(*segments, strict=True)):
        data = given_texts[row].encode()
        for at in range(begin, begin + count):
            places.add((row, at))
            other, other_key = seen.setdefault(data[at : at + window], (number, key))
            assert other_key == key
            if other == number and data.find(data[at : at + window], begin) < at:
                assert again
    sizes = [len(text.encode()) for text in given_texts]
    assert places == {(row, at) for row, size in enumerate(sizes) for at in range(size - window + 1)}
    assert len(places) == segments.counts.sum()


def test_segments_are_few_and_keys_even() -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 100_000)))
    segments = find_segments(pa.array([text]), 200, 100)
    assert len(segments.keys) == pytest.approx(100_000 * 2 / 102, rel=0.1)
    assert np.bincount((segments.keys >> np.uint64(62)).astype(int)).min() > len(segments.keys) / 5
    assert not segments.again.any()


@pytest.mark.parametrize("shape", ["a", "ab", "中", "a" * 99 + "b", "the same line again\n"])
def test_time_is_linear(shape: str) -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    text = pa.array([shape * (1_000_000 // len(shape.encode()))])
    begin = time.process_time()
    segments = find_segments(text, 10_000, 5_000)
    assert time.process_time() - begin < 1
    assert len(segments.keys) == 1
    assert segments.again.all()
