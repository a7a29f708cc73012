"""Segments of texts: windows of bytes, known by the least hash in them, so that equal windows are known alike.

What is known alike can be brought together wherever it lies, and only there can windows be equal. Neighbouring windows
mostly share their least hash (winnowing; Schleimer et al. 2003, SIGMOD), so few segments hold all windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.words import HASH_FACTOR, MASK


class Segments(NamedTuple):
    """Windows that follow one another in a text and share their key.

    Args:
        rows: The text that each is of.
        begins: The byte with which the first window begins.
        counts: How many windows there are; each begins a byte behind the one before.
        again: Whether two of these windows may be equal: their least hash occurs in them at two places or more.
        keys: 64 bits of the least hash, evenly spread.
    """

    rows: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    again: npt.NDArray[np.bool_]
    keys: npt.NDArray[np.uint64]


def find_segments(texts: pa.StringArray, window: int, gram: int) -> Segments:
    """The segments of all windows of so many bytes, by the hashes of so many bytes in a row.

    Takes a step a byte, whatever the texts are; shorter texts have no windows.
    """
    assert 1 <= gram <= window
    extension = native() if prefers_fast() else None
    if extension is not None:
        flat, keys = extension.find_segments(places(texts), window, gram)
        rows, begins, counts, again = np.ascontiguousarray(flat.reshape(-1, 4).T)
        return Segments(rows, begins, counts, again.astype(np.bool_), keys)
    found: list[tuple[int, int, int, bool]] = []
    found_keys: list[int] = []
    for row, text in enumerate(texts.to_pylist()):
        data = (text or "").encode()
        hashes = [_hash(data[at : at + gram]) for at in range(len(data) - gram + 1)]
        least = [min(hashes[at : at + window - gram + 1]) for at in range(len(data) - window + 1)]
        begin = 0
        for end in range(1, len(least) + 1):
            if end == len(least) or least[end] != least[begin]:
                times = hashes[begin : end + window - gram].count(least[begin])
                found.append((row, begin, end - begin, times > 1))
                found_keys.append(_absorb(least[begin], 1))
                begin = end
    rows, begins, counts, again = np.array(found, dtype=np.int32).reshape(-1, 4).T
    return Segments(rows, begins, counts, again.astype(np.bool_), np.array(found_keys, dtype=np.uint64))


def _hash(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value * HASH_FACTOR + byte
    return _absorb(0, value & MASK)


def _absorb(value: int, other: int) -> int:
    value = (value ^ other) * HASH_FACTOR & MASK
    return value ^ value >> 32
