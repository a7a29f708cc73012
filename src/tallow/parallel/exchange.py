"""Each process gives each other one a part of its tensor; gradients go back the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tallow.parallel.world import World


def exchange(
    x: Tensor, world: World, sent: Sequence[int] | None = None, received: Sequence[int] | None = None
) -> Tensor:
    """The parts that all processes have for this one, one after the other by their rank. All must call it.

    Args:
        x: This process's parts for all processes, by rank along the first dimension.
        sent: Their lengths there; None: all are alike.
        received: The lengths of what the others have for this one.
    """
    return _Exchange.apply(x, world, sent, received)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, world: World, sent: Sequence[int] | None, received: Sequence[int] | None
    ) -> Tensor:
        ctx.world, ctx.sent, ctx.received = world, sent, received
        length = len(x) if received is None else sum(received)
        out = x.new_empty(length, *x.shape[1:])
        dist.all_to_all_single(
            out,
            x.contiguous(),
            None if received is None else list(received),
            None if sent is None else list(sent),
            group=world.group,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return exchange(gradients[0], ctx.world, ctx.received, ctx.sent), None, None, None
