"""Shingles of texts, their MinHash signatures and similarities, and what pairs connect.

A text's words, symbols left out and without case, accents and the values of digits (`words.folded`), are hashed to
64 bits. A shingle is some words in a row, hashed to 64 bits and reduced modulo 2^61 − 1. A text with fewer words has
none.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.classes import class_places
from tallow.kernels.text.words import HASH_FACTOR, MASK, folded, hash_chain, hash_word, words

PRIME = 2**61 - 1

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


class Permutations(NamedTuple):
    """h → (a · h + b) mod 2^61 − 1 for each a in 1 … 2^61 − 2 and b in 0 … 2^61 − 2."""

    a: Hashes
    b: Hashes


class Signatures(NamedTuple):
    """MinHash signatures (Broder 1997) of D texts under H permutations.

    Args:
        least_DH: The least value of each permutation over the shingles; 2^61 − 1 where there are none.
        sizes: How many different shingles each text has.
        keys: 64 bits of the set of shingles.
    """

    least_DH: Hashes
    sizes: Rows
    keys: Hashes


class Sets(NamedTuple):
    """Sorted sets of shingles: that of text i is `shingles[offsets[i] : offsets[i + 1]]`."""

    offsets: Rows
    shingles: Hashes


def draw_permutations(count: int, seed: int) -> Permutations:
    """Permutations drawn by SHAKE-256, so the same ones wherever and whenever they are drawn."""
    drawn = hashlib.shake_256(f"tallow minhash {seed}".encode()).digest(32 * count)
    numbers = [int.from_bytes(drawn[at : at + 16], "little") for at in range(0, len(drawn), 16)]
    a = np.array([1 + number % (PRIME - 1) for number in numbers[:count]], dtype=np.uint64)
    b = np.array([number % PRIME for number in numbers[count:]], dtype=np.uint64)
    return Permutations(a, b)


def sign(texts: pa.StringArray, shingle_words: int, permutations: Permutations) -> Signatures:
    """The signatures of texts, of shingles of so many words."""
    count = len(permutations.a)
    least_DH = np.full((len(texts), count), PRIME, dtype=np.uint64)
    sizes = np.zeros(len(texts), dtype=np.int64)
    keys = np.zeros(len(texts), dtype=np.uint64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        a, b = np.ascontiguousarray(permutations.a), np.ascontiguousarray(permutations.b)
        extension.sign(
            places(texts), class_places(), shingle_words, a.ctypes.data, b.ctypes.data, count,
            least_DH.ctypes.data, sizes.ctypes.data, keys.ctypes.data,
        )  # fmt: skip
        return Signatures(least_DH, sizes, keys)
    for row, text in enumerate(texts.to_pylist()):
        found = _shingles(text or "", shingle_words)
        sizes[row] = len(found)
        keys[row] = sum(_mix(shingle) for shingle in found) & MASK
        if found:
            pairs = zip(permutations.a.tolist(), permutations.b.tolist(), strict=True)
            least_DH[row] = [min((a * shingle + b) % PRIME for shingle in found) for a, b in pairs]
    return Signatures(least_DH, sizes, keys)


def shingle_sets(texts: pa.StringArray, shingle_words: int) -> Sets:
    """The sets of shingles of texts; 8 bytes for each word or so."""
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        shingles = extension.shingle_sets(places(texts), class_places(), shingle_words, offsets.ctypes.data)
        return Sets(offsets, shingles)
    found = [sorted(_shingles(text or "", shingle_words)) for text in texts.to_pylist()]
    np.cumsum([len(shingles) for shingles in found], out=offsets[1:])
    return Sets(offsets, np.array([shingle for shingles in found for shingle in shingles], dtype=np.uint64))


def jaccard(sets: Sets, firsts: Rows, seconds: Rows) -> npt.NDArray[np.float64]:
    """The part of the shingles of either text that both have, for pairs of rows; 0 for two empty sets."""
    assert len(firsts) == len(seconds)
    extension = native() if prefers_fast() else None
    if extension is not None:
        similarities = np.empty(len(firsts), dtype=np.float64)
        offsets, shingles = np.ascontiguousarray(sets.offsets), np.ascontiguousarray(sets.shingles)
        firsts, seconds = np.ascontiguousarray(firsts), np.ascontiguousarray(seconds)
        extension.jaccard(
            offsets.ctypes.data, shingles.ctypes.data, firsts.ctypes.data, seconds.ctypes.data, len(firsts),
            similarities.ctypes.data,
        )  # fmt: skip
        return similarities
    return np.array(
        [
            _jaccard(*(set(sets.shingles[sets.offsets[row] : sets.offsets[row + 1]].tolist()) for row in pair))
            for pair in zip(firsts, seconds, strict=True)
        ],
        dtype=np.float64,
    )


def connect(firsts: Rows, seconds: Rows, count: int) -> Rows:
    """For each number below `count` the smallest that pairs connect it with, be it over others (union-find)."""
    assert len(firsts) == len(seconds)
    roots = np.arange(count, dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        firsts, seconds = np.ascontiguousarray(firsts), np.ascontiguousarray(seconds)
        extension.connect(firsts.ctypes.data, seconds.ctypes.data, len(firsts), roots.ctypes.data, count)
        return roots

    def find(at: int) -> int:
        while roots[at] != at:
            roots[at] = roots[roots[at]]
            at = int(roots[at])
        return at

    for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
        one, other = find(first), find(second)
        roots[max(one, other)] = min(one, other)
    for at in range(count):
        roots[at] = roots[roots[at]]
    return roots


def _shingles(text: str, shingle_words: int) -> set[int]:
    hashes = [hash_word(folded(word.text)) for word in words(text) if word.plain]
    return {hash_chain(hashes[at : at + shingle_words]) % PRIME for at in range(len(hashes) - shingle_words + 1)}


def _mix(shingle: int) -> int:
    value = (shingle ^ 1) * HASH_FACTOR & MASK
    return value ^ value >> 32


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0
