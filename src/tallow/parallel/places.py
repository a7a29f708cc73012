"""Rows cut into places, of which each process has some, and the context of such a part of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks.context import AttentionSpec, Context, sequence_numbers
from tallow.parallel.world import World


@dataclass(frozen=True)
class Cut:
    """Which places of a row each process has: one chunk of it, or two.

    With two, the first and the last chunk are one process's, the second and the last but one the next one's, and so
    on: in causal order, where a place sees those before it, all then have the same to do (arXiv 2407.21783, section
    3.3.2). Chunks are equally long; the last ones may end beyond the row, in filling.

    Args:
        length: Places of a row.
        processes: How many share it.
        chunks_each: Chunks of each process, 1 or 2.
    """

    length: int
    processes: int
    chunks_each: int

    @property
    def chunk(self) -> int:
        """Places of a chunk."""
        return -(-self.length // (self.processes * self.chunks_each))

    @property
    def filling(self) -> int:
        """Places beyond the row."""
        return self.chunk * self.processes * self.chunks_each - self.length

    def chunks_of(self, rank: int) -> list[int]:
        """Numbers of the chunks of a process."""
        return [rank, 2 * self.processes - 1 - rank][: self.chunks_each]

    def take(self, x_BT: Tensor, rank: int, filler: int) -> Tensor:
        """What a process has of something that there is for each place, `filler` beyond the row."""
        chunks = F.pad(x_BT, (0, self.filling), value=filler).unflatten(1, (-1, self.chunk))
        return chunks[:, self.chunks_of(rank)].flatten(1, 2)

    def pieces_of(self, rank: int, size: int) -> list[tuple[range, slice]]:
        """The places of the row that a process has, in pieces of at most `size`, and where it has them."""
        pieces: list[tuple[range, slice]] = []
        for number, chunk in enumerate(self.chunks_of(rank)):
            first = chunk * self.chunk
            for start in range(first, min(first + self.chunk, self.length), size):
                stop = min(start + size, first + self.chunk, self.length)
                offset = number * self.chunk - first
                pieces.append((range(start, stop), slice(start + offset, stop + offset)))
        return pieces


class SharedContext(Context, ABC):
    """The context of the places that this process has of rows that several share.

    Args:
        whole: That of the whole rows.
        cut: How they are cut.
        world: Those that share them.
    """

    def __init__(self, whole: Context, cut: Cut, world: World) -> None:
        self.whole, self.cut, self.world = whole, cut, world
        self.positions_BT = cut.take(whole.positions_BT, world.rank, 0)
        self.padding_BT = None
        if cut.filling or whole.padding_BT is not None:
            padding_BT = whole.positions_BT.new_zeros(whole.positions_BT.shape).bool()
            padding_BT = padding_BT if whole.padding_BT is None else whole.padding_BT
            self.padding_BT = cut.take(padding_BT, world.rank, 1)

    @abstractmethod
    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor: ...

    def sum_over_sequences(self, values_NE: Tensor) -> Tensor:
        """For each place of this process the sum of what all of them give for all places of its sequence, N E."""
        numbers_BT = sequence_numbers(self.whole.positions_BT)
        sequences_N = self.cut.take(numbers_BT, self.world.rank, 0).flatten()
        sums_SE = values_NE.new_zeros(int(numbers_BT[-1, -1]) + 1, values_NE.shape[1])
        sums_SE.index_add_(0, sequences_N, values_NE)
        dist.all_reduce(sums_SE, group=self.world.group)
        return sums_SE[sequences_N]
