"""The strings of symbols that occur most often in counted words."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native


class Substrings(NamedTuple):
    """Some strings of symbols, N of them.

    Args:
        places: Where one of its occurrences begins, for each.
        lengths: How many symbols it has.
        counts: How often it occurs; occurrences may overlap.
    """

    places: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def best_substrings(
    symbols: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    longest: int,
    min_count: int,
    most: int,
) -> Substrings:
    """The substrings of words that cover most symbols, the best first, of equals that of the smallest symbols.

    Left out are those of a single symbol, and those behind which a certain symbol always follows within `longest`: the
    longer one is as frequent. Counts are exact up to 2^63.

    Args:
        symbols: Of all words, one after another, below 2^21 - 1.
        ends: Where each word ends.
        counts: How often each occurs, at least once.
        longest: That a substring may be.
        min_count: How often it must occur, at least.
        most: How many are wanted.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        return _reference(symbols.tolist(), ends.tolist(), counts.tolist(), longest, max(1, min_count), most)
    addresses = symbols.ctypes.data, ends.ctypes.data, counts.ctypes.data
    found = extension.best_substrings(*addresses, len(ends), longest, max(1, min_count), most)
    return Substrings(*found.reshape(-1, 3).T.copy())


def _reference(
    symbols: list[int], ends: list[int], counts: list[int], longest: int, min_count: int, most: int
) -> Substrings:
    occurrences: Counter[tuple[int, ...]] = Counter()
    places: dict[tuple[int, ...], int] = {}
    for begin, end, count in zip([0, *ends[:-1]][: len(ends)], ends, counts, strict=True):
        for at in range(begin, end):
            for behind in range(at + 1, min(end, at + longest) + 1):
                substring = tuple(symbols[at:behind])
                occurrences[substring] += count
                places.setdefault(substring, at)
    redundant = {longer[:-1] for longer, count in occurrences.items() if occurrences[longer[:-1]] == count}
    order = sorted(
        (-count * len(substring), substring)
        for substring, count in occurrences.items()
        if len(substring) > 1 and count >= min_count and substring not in redundant
    )[:most]
    found = [(places[substring], len(substring), occurrences[substring]) for _, substring in order]
    return Substrings(*np.array(found, dtype=np.int64).reshape(-1, 3).T.copy())
