"""Byte-pair encoding learned from counted words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native


class Merge(NamedTuple):
    """Two symbols that become one, and how often they followed one another by then.

    `merged` is a symbol that was there before if two ways lead to the same text.
    """

    left: int
    right: int
    merged: int
    frequency: int


def learn_merges(
    symbols: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    names: Sequence[bytes],
    vocab_size: int,
    min_count: int,
) -> list[Merge]:
    """Which pairs of symbols become one, the most frequent first, of equals that of the smallest symbols.

    Counts are exact up to 2^63. Source: arXiv 1508.07909, section 3.2.

    Args:
        symbols: Of all words, one after another.
        ends: Where each word ends.
        counts: How often each occurs.
        names: The text of each symbol there is to begin with.
        vocab_size: Merging ends when there are so many symbols,
        min_count: or when no two follow one another so often.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        words = [word.tolist() for word in np.split(symbols, ends[:-1])] if len(ends) else []
        return _reference(words, counts.tolist(), names, vocab_size, min_count)
    places = symbols.ctypes.data, ends.ctypes.data, counts.ctypes.data
    found = extension.learn_merges(*places, len(ends), list(names), vocab_size, max(1, min_count))
    return [Merge(*merge) for merge in found]


def _reference(
    words: list[list[int]], counts: Sequence[int], names: Sequence[bytes], vocab_size: int, min_count: int
) -> list[Merge]:
    names = list(names)
    known = {name: symbol for symbol, name in reversed(list(enumerate(names)))}
    merges: list[Merge] = []
    while len(known) < vocab_size:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in zip(words, counts, strict=True):
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        (left, right), count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < max(1, min_count):
            break
        name = names[left] + names[right]
        merged = known.setdefault(name, len(names))
        if merged == len(names):
            names.append(name)
        merges.append(Merge(left, right, merged, count))
        for word in words:
            merge_pair(word, left, right, merged)
    return merges


def merge_pair(word: list[int], left: int, right: int, merged: int) -> None:
    """Put one symbol in the place of two wherever they follow one another."""
    at = 0
    while at + 1 < len(word):
        if word[at] == left and word[at + 1] == right:
            word[at : at + 2] = [merged]
        at += 1
