"""Interpolated modified Kneser-Ney smoothing of n-grams ("An empirical study of smoothing techniques for language
modeling", Chen and Goodman, TR-10-98, sections 3.1 and 4; counts adjusted as in "Scalable modified Kneser-Ney language
model estimation", Heafield et al. 2013, section 3).

N-grams are keys of 64 bits in sorted arrays, and everything is counted in whole numbers, so the order of the texts does
not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.text.ngrams import BEGIN, NgramTable, longer_keys

Discounts = tuple[float, float, float]
USUAL_DISCOUNTS: Discounts = (0.5, 1.0, 1.5)
"""Where there are too few n-grams to estimate them, as KenLM has it."""


class Estimate(NamedTuple):
    """Tables of all orders, the natural logarithm of the probability of an unknown word, and the discounts by order."""

    tables: list[NgramTable]
    unknown: float
    discounts: list[Discounts]


@dataclass
class _Counted:
    """N-grams of one length: their keys (rising), how often they occur, and where in the tables of those one word
    shorter their ends and their beginnings are."""

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int32]
    beginnings: npt.NDArray[np.int32]


def estimate(offsets: npt.NDArray[np.int64], words: npt.NDArray[np.uint64], order: int) -> Estimate:
    """Probabilities of all n-grams of up to `order` words.

    Args:
        offsets: Where each text's words begin, N + 1.
        words: Each text's between `BEGIN` and `END`.
        order: Words of the longest n-gram.
    """
    counted = _count(offsets, words, order)
    tables, discounts = list[NgramTable](), list[Discounts]()
    probabilities, unknown = np.zeros(0), 0.0
    for number, grams in enumerate(counted):
        adjusted = grams.counts.astype(np.int64)
        if number + 1 < len(counted):
            before = np.bincount(counted[number + 1].ends, minlength=len(adjusted))
            adjusted = np.where(before > 0, before, adjusted)  # what begins a text has no word before it
        if number == 0:
            adjusted[grams.keys == BEGIN] = 0  # it is not predicted
        discounts.append(_discounts(adjusted))
        discounted = np.maximum(adjusted - np.array([0.0, *discounts[-1]])[np.minimum(adjusted, 3)], 0)
        if number == 0:
            total, vocabulary = int(adjusted.sum()), len(adjusted)  # without the beginning, with the unknown word
            share = (total - float(discounted.sum())) / total
            unknown = share / vocabulary
            probabilities = discounted / total + unknown
        else:
            totals, shares = _contexts(grams.beginnings, adjusted, discounts[-1], len(counted[number - 1].keys))
            tables[-1] = replace(tables[-1], backoffs=np.log(shares).astype(np.float32))
            context = grams.beginnings
            probabilities = discounted / totals[context] + shares[context] * probabilities[grams.ends]
        backoffs = np.zeros(len(adjusted), np.float32)
        tables.append(NgramTable(grams.keys, np.log(probabilities).astype(np.float32), backoffs))
    return Estimate(tables, math.log(unknown), discounts)


def _count(offsets: npt.NDArray[np.int64], words: npt.NDArray[np.uint64], order: int) -> list[_Counted]:
    sizes = np.diff(offsets)
    depths = np.arange(len(words), dtype=np.int64) - np.repeat(offsets[:-1], sizes)  # words before it in its text
    depths = np.minimum(depths, order).astype(np.uint8)
    counted, keys = list[_Counted](), words
    empty = np.zeros(0, np.int32)
    for size in range(1, order + 1):
        shorter = keys
        if size > 1:
            keys = shorter.copy()
            keys[size - 1 :] = longer_keys(shorter[size - 1 :], words[: 1 - size])
        places = np.flatnonzero(depths >= size - 1)
        if not len(places):
            break
        found, first, counts = np.unique(keys[places], return_index=True, return_counts=True)
        first = places[first]
        ends = beginnings = empty
        if size > 1:
            ends = np.searchsorted(counted[-1].keys, shorter[first]).astype(np.int32)
            beginnings = np.searchsorted(counted[-1].keys, shorter[first - 1]).astype(np.int32)
        counted.append(_Counted(found, counts.astype(np.uint32), ends, beginnings))
    return counted


def _discounts(counts: npt.NDArray[np.int64]) -> Discounts:
    """What is taken from counts of one, of two, and of more (Chen and Goodman, equation 26)."""
    ones, twos, threes, fours = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
    if not ones or not twos or not threes:
        return USUAL_DISCOUNTS
    ratio = ones / (ones + 2 * twos)
    found = (1 - 2 * ratio * twos / ones, 2 - 3 * ratio * threes / twos, 3 - 4 * ratio * fours / threes)
    return found if all(0 < value <= size for size, value in enumerate(found, 1)) else USUAL_DISCOUNTS


def _contexts(
    beginnings: npt.NDArray[np.int32], counts: npt.NDArray[np.int64], discounts: Discounts, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Of each n-gram: the sum of the counts of those that begin with it, and the share that was taken from them; 1
    where there are none."""
    order = np.minimum(counts, 3)
    kinds = [np.bincount(beginnings[order == kind], minlength=size) for kind in (1, 2, 3)]
    totals = np.bincount(beginnings, weights=counts, minlength=size).astype(np.int64)  # exact below 2^53
    taken = sum(discount * kind for discount, kind in zip(discounts, kinds, strict=True))
    return totals, np.divide(taken, totals, out=np.ones(size), where=totals > 0)
