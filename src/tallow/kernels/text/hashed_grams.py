"""Texts as sparse vectors: their n-grams of words and of characters, hashed to a table without a vocabulary.

"Feature hashing for large scale multitask learning" (arXiv 0902.2206). A value is 1 + ln(how often), and a text's
vector has length one, so that long texts do not count for more than short ones.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places

_START, _PRIME, _GOLDEN = 14695981039346656037, 1099511628211, 0x9E3779B97F4A7C15
_WORD_SALT, _CHARACTER_SALT = 1, 2
_MASK = (1 << 64) - 1
_BLANKS, _TOKEN = re.compile(rb"[\x00-\x20\x7f]+"), re.compile(rb"[a-z0-9\x80-\xff]+|[^ ]")
_CHARACTER = re.compile(rb"[\x00-\x7f\xc0-\xff][\x80-\xbf]*")


@dataclass(frozen=True)
class Grams:
    """Which n-grams of a text count.

    Args:
        bytes: Of UTF-8 from its beginning that are looked at, at most.
        words: Words of the longest n-gram of words; 0: none. A word is letters, digits and whatever is not ASCII, or
            else a single sign.
        shortest, longest: Characters of n-grams of characters, across words; a longest of 0: none.
        bits: The table has 2^bits places.
    """

    bytes: int
    words: int
    shortest: int
    longest: int
    bits: int

    def as_tuple(self) -> tuple[int, int, int, int, int]:
        return self.bytes, self.words, self.shortest, self.longest, self.bits


class Features(NamedTuple):
    """Sparse vectors of N texts.

    Args:
        offsets: Where each one's features begin, int64, N + 1.
        places: In the table, uint32; each once a text, in the order in which they occur first.
        values: float32.
    """

    offsets: npt.NDArray[np.int64]
    places: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float32]


def hashed_grams(texts: pa.StringArray, grams: Grams) -> Features:
    """The vectors of texts; that of one without n-grams has no features."""
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        return Features(offsets, *extension.hashed_grams(places(texts), grams.as_tuple(), offsets.ctypes.data))
    all_places, all_values = list[int](), list[float]()
    for number, text in enumerate(texts.to_pylist()):
        counts = Counter(_places((text or "").encode(), grams))
        weights = [1 + math.log(count) for count in counts.values()]
        norm = math.sqrt(sum(weight * weight for weight in weights)) or 1.0
        all_places += counts
        all_values += [weight / norm for weight in weights]
        offsets[number + 1] = len(all_places)
    return Features(offsets, np.array(all_places, np.uint32), np.array(all_values, np.float32))


def sum_grams(texts: pa.StringArray, grams: Grams, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The product of each text's vector with `weights` (2^bits)."""
    assert len(weights) == 1 << grams.bits
    extension = native() if prefers_fast() else None
    sums = np.zeros(len(texts))
    if extension is not None:
        extension.sum_grams(places(texts), grams.as_tuple(), weights.ctypes.data, sums.ctypes.data)
        return sums
    offsets, found, values = hashed_grams(texts, grams)
    for number, (begin, end) in enumerate(pairwise(offsets.tolist())):
        sums[number] = (values[begin:end].astype(np.float64) * weights[found[begin:end]]).sum()
    return sums


def count_grams(texts: pa.StringArray, grams: Grams) -> npt.NDArray[np.int64]:
    """How often each place of the table (2^bits) is hit by the n-grams of all texts."""
    totals = np.zeros(1 << grams.bits, dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        extension.count_grams(places(texts), grams.as_tuple(), totals.ctypes.data)
        return totals
    for text in texts.to_pylist():
        for place in _places((text or "").encode(), grams):
            totals[place] += 1
    return totals


def weigh_grams(
    texts: pa.StringArray, grams: Grams, weights: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Of each text the sum of its n-grams' weights (2^bits), and how many n-grams these are."""
    assert weights.shape == (1 << grams.bits,)
    sums, sizes = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        extension.weigh_grams(
            places(texts), grams.as_tuple(), weights.ctypes.data, sums.ctypes.data, sizes.ctypes.data
        )  # fmt: skip
        return sums, sizes
    for row, text in enumerate(texts.to_pylist()):
        counts = Counter(_places((text or "").encode(), grams))
        sums[row] = sum(count * weights[place] for place, count in counts.items())
        sizes[row] = counts.total()
    return sums, sizes


def _places(text: bytes, grams: Grams) -> Iterator[int]:
    if len(text) > grams.bytes:
        size = grams.bytes
        while size > 0 and text[size] & 0xC0 == 0x80:
            size -= 1
        text = text[:size]
    text = _BLANKS.sub(b" ", text).strip(b" ").lower()  # that of bytes: of ASCII alone
    if grams.words > 0:
        words = [_hash(word, _START) for word in _TOKEN.findall(text)]
        for number in range(len(words)):
            value = _WORD_SALT
            for word in words[number : number + grams.words]:
                value = ((value ^ word) * _PRIME) & _MASK
                value ^= value >> 32
                yield _place(value, grams)
    characters = _CHARACTER.findall(text) if grams.longest > 0 else []
    for number in range(len(characters)):
        for size in range(max(1, grams.shortest), min(grams.longest, len(characters) - number) + 1):
            value = _hash(b"".join(characters[number : number + size]), _START ^ _CHARACTER_SALT)
            yield _place(value ^ value >> 32, grams)


def _hash(text: bytes, value: int) -> int:
    """FNV-1a of 64 bits."""
    for byte in text:
        value = ((value ^ byte) * _PRIME) & _MASK
    return value


def _place(value: int, grams: Grams) -> int:
    return ((value * _GOLDEN) & _MASK) >> (64 - grams.bits)
