"""Tensors of which each process has some, made whole, and parts of a sum, summed and shared: each the other's gradient.

As in Megatron-LM's sequence parallelism (arXiv 2205.05198, section 4.2.2). DTensor does the same, but decides anew each
time how; among CPUs that takes longer than the message.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(share: Tensor, dimension: int, length: int, group: dist.ProcessGroup) -> Tensor:
    """All shares, one after the other by the rank of their process. All of the group must call it.

    Of a gradient each process must have a part; it goes back as a sum.

    Args:
        share: This process's, of which the first processes have the most: see `share_of`.
        dimension: Along which they follow each other.
        length: Of all together.
    """
    return _Gather.apply(share, dimension, length, group)


def share_sum(part: Tensor, dimension: int, group: dist.ProcessGroup) -> Tensor:
    """This process's share along a dimension of the sum of all parts. All of the group must call it."""
    return _ShareSum.apply(part, dimension, group)


def share_of(length: int, rank: int, size: int) -> range:
    """What a process has of so many: each as many as the first, until there are no more."""
    each = -(-length // size)
    return range(min(each * rank, length), min(each * (rank + 1), length))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, dimension: int, length: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dimension, ctx.group = dimension, group
        return _gather(share, dimension, length, group)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return _share_sum(outer[0], ctx.dimension, ctx.group), None, None, None


class _ShareSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dimension: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dimension, ctx.length, ctx.group = dimension, part.shape[dimension], group
        return _share_sum(part, dimension, group)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return _gather(outer[0], ctx.dimension, ctx.length, ctx.group), None, None


def _gather(share: Tensor, dimension: int, length: int, group: dist.ProcessGroup) -> Tensor:
    size = group.size()
    sent = _filled(share, dimension, -(-length // size))
    received = sent.new_empty(size * len(sent), *sent.shape[1:])
    dist.all_gather_single(received, sent, group=group)
    return received[:length].movedim(0, dimension).contiguous()


def _share_sum(part: Tensor, dimension: int, group: dist.ProcessGroup) -> Tensor:
    size, length = group.size(), part.shape[dimension]
    each = -(-length // size)
    sent = _filled(part, dimension, size * each)
    received = sent.new_empty(each, *sent.shape[1:])
    dist.reduce_scatter_single(received, sent, group=group)
    return received[: len(share_of(length, group.rank(), size))].movedim(0, dimension).contiguous()


def _filled(x: Tensor, dimension: int, length: int) -> Tensor:
    """A tensor with a dimension first, and zeros behind it up to this length."""
    rows = x.movedim(dimension, 0)
    if len(rows) == length:
        return rows.contiguous()
    filled = rows.new_zeros(length, *rows.shape[1:])
    filled[: len(rows)] = rows
    return filled
