"""A random order of any range of numbers that needs no memory: the n-th element is computed, not looked up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 8
Numbers = npt.NDArray[np.uint64]


class Permutation:
    """A bijection of 0 … size - 1, different for each key.

    A Feistel network permutes the next power of four; what falls outside the range walks on until it is inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, section 4, cycle walking). Fewer than four
    passes are needed on average. The round function is the finalizer of SplitMix64 (Steele et al., "Fast splittable
    pseudorandom number generators", 2014).

    Args:
        size: How many numbers, at least 1.
        key: Numbers that name the order, such as a seed and an epoch.
    """

    def __init__(self, size: int, *key: int) -> None:
        assert size >= 1
        self.size = size
        self.half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self.mask = np.uint64((1 << int(self.half_bits)) - 1)
        state = np.zeros(1, dtype=np.uint64)
        for part in key:
            state = mix(state + np.uint64(part % 2**64))
        self.round_keys = mix(state + np.arange(1, ROUNDS + 1, dtype=np.uint64))

    def __call__(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """The elements at these places of the order."""
        result = self._network(np.asarray(indices).astype(np.uint64))
        while (outside := result >= self.size).any():
            result[outside] = self._network(result[outside])
        return result.astype(np.int64)

    def _network(self, numbers: Numbers) -> Numbers:
        left, right = numbers >> self.half_bits, numbers & self.mask
        for key in self.round_keys:
            left, right = right, left ^ (mix(right + key) & self.mask)
        return (left << self.half_bits) | right


class Epochs:
    """All rows again and again, each time in an order of its own.

    Args:
        size: How many rows, at least 1.
        key: Numbers that name the orders, such as a seed.
        first: The order of the first time, where it is to be another.
    """

    def __init__(self, size: int, *key: int, first: npt.NDArray[np.int64] | None = None) -> None:
        assert first is None or len(first) == size
        self.size, self.key, self.first = size, key, first

    def __call__(self, places: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The epochs and the rows at some places, counted over all epochs."""
        epochs, within = np.divmod(places, self.size)
        rows = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            known = self.first if epoch == 0 else None
            order = Permutation(self.size, *self.key, epoch) if known is None else known.__getitem__
            rows[here] = order(within[here])
        return epochs, rows


def mix(numbers: Numbers) -> Numbers:
    """SplitMix64's output function; arithmetic wraps at 2^64."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
