"""Sums of gradients over slow links: matrices travel as products of two thin ones (PowerSGD, arXiv 1905.13727)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from tallow.parallel.shares import own_gradient
from tallow.parallel.world import World, buckets

EXACT_ROUNDS = 2
"""Exchanges at the start that are not compressed: the hook wants some."""


class CompressedSum:
    """Sums the gradients of some parameters over the processes of a world, approximately.

    What an exchange leaves out each process adds to its next gradient (error feedback, algorithm 2 of the paper). This
    is held in memory alone: a run that goes on from a checkpoint has lost what its last exchange left out.

    Args:
        parameters: Each whole on each process.
        world: The processes.
        rank: Inner size of the two matrices.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, rank: int) -> None:
        self.world, self.rank = world, rank
        self._buckets = list(buckets(parameters[::-1]))
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing left out."""
        self._state = PowerSGDState(self.world.group, self.rank, start_powerSGD_iter=EXACT_ROUNDS, random_seed=0)

    @property
    def saving(self) -> float:
        """Numbers of all gradients so far over those that were sent in their place."""
        return self._state.compression_stats()[0]

    @contextmanager
    def in_last_backward(self) -> Iterator[None]:
        """Around the last backward pass before an update; afterwards the gradients are sums.

        Nothing is sent before the pass has ended: an exchange has three messages, each made of the answer to the last,
        which all processes must send in the same order.
        """
        yield
        for index, bucket in enumerate(self._buckets):
            gradients = [own_gradient(parameter) for parameter in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            parts = flat.split([gradient.numel() for gradient in gradients])
            views = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            message = _Bucket(index, index == len(self._buckets) - 1, flat, views)
            mean = powerSGD_hook(self._state, cast("GradBucket", message)).wait()
            flat.copy_(mean).mul_(self.world.size)
            for gradient, view in zip(gradients, views, strict=True):
                gradient.copy_(view)


class _Bucket:
    """Gradients as the hook wants them: one after the other, and each by itself in the same memory."""

    def __init__(self, index: int, is_last: bool, flat: Tensor, views: list[Tensor]) -> None:
        self._index, self._is_last, self._flat, self._views = index, is_last, flat, views

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._is_last

    def buffer(self) -> Tensor:
        return self._flat

    def gradients(self) -> list[Tensor]:
        return self._views
