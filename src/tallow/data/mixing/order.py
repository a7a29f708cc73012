"""The order in which a run takes rows of several domains, from which any place can be computed.

A run is blocks of `BLOCK` places. In each of them every domain has as many places as its share says, rounded; they are
spread evenly but for chance: the block is cut into as many equal stretches as the domain has places, and in each of
these one falls at random. So no domain is ever far ahead, and none keeps step with the number of processes. A domain's
own rows come as those of a whole data set do, one epoch after another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tallow.data.mixing.mixture import apportion
from tallow.data.permutation import Epochs, mix

BLOCK = 2**14


class Order(Protocol):
    """Says which row is at which place of a run."""

    def numbers(self, places: range) -> list[int]:
        """The numbers of the rows (`epoch * num_sequences + sequence`) at these places; at least one."""
        ...


class MixedOrder:
    """Rows of D domains, which are numbered one domain after another.

    Args:
        rows: How many each domain has.
        shares: Of the run, of each domain; one without rows has none. They add up to 1.
        seed: Names the order.
        firsts: Of domains whose first epoch has an order of its own, that; None for the others.
    """

    def __init__(
        self,
        rows: Sequence[int],
        shares: Sequence[float],
        seed: int,
        firsts: Sequence[npt.NDArray[np.int64] | None] | None = None,
    ) -> None:
        self.seed = seed
        self.total = sum(rows)
        self.counts = np.array(apportion(shares, BLOCK), dtype=np.int64)
        """Places of a block, of each domain."""
        self._bases = np.cumsum([0, *rows])
        self._epochs = [
            Epochs(max(1, size), seed, domain, first=firsts[domain] if firsts else None)
            for domain, size in enumerate(rows)
        ]

    def numbers(self, places: range) -> list[int]:
        numbers = np.empty(len(places), dtype=np.int64)
        for block in range(places[0] // BLOCK, places[-1] // BLOCK + 1):
            domains, ranks = _block(tuple(self.counts.tolist()), self.seed, block)
            first, last = max(places[0], block * BLOCK), min(places[-1] + 1, (block + 1) * BLOCK)
            here = slice(first - block * BLOCK, last - block * BLOCK)
            found = numbers[first - places[0] : last - places[0]]
            for domain in np.unique(domains[here]).tolist():
                own = domains[here] == domain
                draws = block * self.counts[domain] + ranks[here][own]
                epochs, rows = self._epochs[domain](draws)
                found[own] = epochs * self.total + self._bases[domain] + rows
        return numbers.tolist()


@functools.lru_cache(maxsize=4)
def _block(counts: tuple[int, ...], seed: int, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The domain of each place of a block, and how many places before it in the block are the same domain's."""
    sizes = np.array(counts, dtype=np.int64)
    domains = np.repeat(np.arange(len(counts), dtype=np.int64), sizes)
    ranks = np.arange(BLOCK, dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    state = mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(block))
    chance = (mix(state + np.arange(1, BLOCK + 1, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    order = np.argsort((ranks + chance) / sizes[domains], kind="stable")
    return domains[order], ranks[order]
