"""WordPiece learned from counted words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native
from tallow.kernels.text.merges import Merge, merge_pair


def learn_wordpieces(
    symbols: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    names: Sequence[bytes],
    vocab_size: int,
    min_count: int,
) -> list[Merge]:
    """Which pairs of symbols become one: that first whose P(AB) / (P(A)·P(B)) is largest.

    The score is compared exactly, by counts of the pair and of its parts as the words are by then; counts may be up to
    2^63. Of equals the most frequent goes first, then that of the smallest symbols.

    Source: Schuster and Nakajima, "Japanese and Korean voice search", ICASSP 2012, section 3.

    Args:
        symbols: Of all words, one after another.
        ends: Where each word ends.
        counts: How often each occurs, at least once.
        names: The text of each symbol there is to begin with.
        vocab_size: It ends when there are so many symbols,
        min_count: or when no two follow one another so often.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        words = [word.tolist() for word in np.split(symbols, ends[:-1])] if len(ends) else []
        return _reference(words, counts.tolist(), names, vocab_size, min_count)
    places = symbols.ctypes.data, ends.ctypes.data, counts.ctypes.data
    found = extension.learn_wordpieces(*places, len(ends), list(names), vocab_size, max(1, min_count))
    return [Merge(*merge) for merge in found]


def _reference(
    words: list[list[int]], counts: Sequence[int], names: Sequence[bytes], vocab_size: int, min_count: int
) -> list[Merge]:
    names = list(names)
    known = {name: symbol for symbol, name in reversed(list(enumerate(names)))}
    merges: list[Merge] = []
    while len(known) < vocab_size:
        single: Counter[int] = Counter()
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in zip(words, counts, strict=True):
            for symbol in word:
                single[symbol] += count
            for pair in pairwise(word):
                pairs[pair] += count
        order = [
            (Fraction(-count, single[left] * single[right]), -count, left, right)
            for (left, right), count in pairs.items()
            if count >= max(1, min_count)
        ]
        if not order:
            break
        _, count, left, right = min(order)
        name = names[left] + names[right]
        merged = known.setdefault(name, len(names))
        if merged == len(names):
            names.append(name)
        merges.append(Merge(left, right, merged, -count))
        for word in words:
            merge_pair(word, left, right, merged)
    return merges
