"""Attention over rows that processes share, with keys and values that go round (ring attention; arXiv 2310.01889).

Each process keeps the queries of its places. Keys and values of each go to the next process, and so on until all have
seen all; while some are computed with, the next ones travel. Partial results are merged by their greatest scores and
their sums of exponentials, so that no process holds all keys, nor all scores of its own. Rows are cut so that in causal
order all have the same to do (2311.09431 has that aim; the cut is that of `places.Cut` with two chunks each).

The backward pass sends keys and values round once more, and after them the sums of their gradients, which so come back
to whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tallow.errors import UsageError
from tallow.models.blocks.context import AttentionSpec, Context, Masked
from tallow.parallel.places import Cut, SharedContext
from tallow.parallel.world import World

PIECE_PLACES = 512
"""Most queries, and most keys, whose scores exist at once."""

Pair = tuple[range, slice, range, slice]
"""Places of some queries in their rows, and where they are in what their process has; the same of some keys."""


class RingContext(SharedContext):
    """A share of the places of rows, whose keys and values go round while it attends."""

    def __init__(self, whole: Context, cut: Cut, world: World) -> None:
        super().__init__(whole, cut, world)
        if not isinstance(whole, Masked):
            raise UsageError(
                "this objective does not say which places see which, so keys and values cannot go in a ring",
                "set loop.parallel.attention to all_to_all",
            )
        self.rule: Masked = whole
        self._pairs: dict[tuple[int, int | None], list[Pair]] = {}

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        dtype = v_BKTd.dtype  # autocast leaves some of the three wider than attention reads them
        q_BKGTd = q_BHTd.to(dtype).unflatten(1, (k_BKTd.shape[1], -1))
        with torch.autocast(q_BHTd.device.type, enabled=False):
            return _Ring.apply(q_BKGTd, k_BKTd.to(dtype), v_BKTd, self, spec).flatten(1, 2)

    def pairs(self, source: int, window: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Where pieces of this process's queries and of another's keys are of which some see some, and which do so:
        B 1 1 Q S or 1 1 1 Q S."""
        if (source, window) not in self._pairs:
            mine, others = (self.cut.pieces_of(rank, PIECE_PLACES) for rank in (self.world.rank, source))
            self._pairs[source, window] = [
                (*query, *key) for query in mine for key in others if self.rule.visible(query[0], key[0], window).any()
            ]
        for queries, at_q, keys, at_k in self._pairs[source, window]:
            yield at_q, at_k, self.rule.visible(queries, keys, window)[:, None]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BKGTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, context: RingContext, spec: AttentionSpec
    ) -> Tensor:
        wide = torch.promote_types(q_BKGTd.dtype, torch.float32)
        out_BKGTd = torch.zeros_like(q_BKGTd, dtype=wide)
        greatest_BKGT1 = torch.full_like(out_BKGTd[..., :1], float("-inf"))
        total_BKGT1 = torch.zeros_like(greatest_BKGT1)  # of exponentials of what scores are below the greatest
        for source, (keys_BKTd, values_BKTd) in _around(torch.stack([k_BKTd, v_BKTd]), context.world):
            for at_q, at_k, visible in context.pairs(source, spec.window):
                scores_BKGQS = _scores(q_BKGTd[..., at_q, :], keys_BKTd[:, :, at_k], visible, spec)
                before_BKGQ1 = greatest_BKGT1[..., at_q, :]
                after_BKGQ1 = torch.maximum(before_BKGQ1, scores_BKGQS.amax(-1, keepdim=True))
                base_BKGQ1 = _finite(after_BKGQ1)
                weights_BKGQS, kept_BKGQ1 = (scores_BKGQS - base_BKGQ1).exp(), (before_BKGQ1 - base_BKGQ1).exp()
                greatest_BKGT1[..., at_q, :] = after_BKGQ1
                total_BKGT1[..., at_q, :] = total_BKGT1[..., at_q, :] * kept_BKGQ1 + weights_BKGQS.sum(-1, keepdim=True)
                part_BKGQd = _times(weights_BKGQS, values_BKTd[:, :, at_k])
                out_BKGTd[..., at_q, :] = out_BKGTd[..., at_q, :] * kept_BKGQ1 + part_BKGQd
        total_BKGT1.masked_fill_(total_BKGT1 == 0, 1.0)  # of a query that sees nothing
        ctx.context, ctx.spec = context, spec
        out_BKGTd = (out_BKGTd / total_BKGT1).to(q_BKGTd.dtype)
        # not the log of the sums, in whose rounding all weights of a row would share
        ctx.save_for_backward(q_BKGTd, k_BKTd, v_BKTd, out_BKGTd, _finite(greatest_BKGT1), total_BKGT1)
        return out_BKGTd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_BKGTd, k_BKTd, v_BKTd, out_BKGTd, greatest_BKGT1, total_BKGT1 = ctx.saved_tensors
        context, spec, wide = ctx.context, ctx.spec, total_BKGT1.dtype
        [by_out_BKGTd] = gradients
        inner_BKGT1 = (by_out_BKGTd.to(wide) * out_BKGTd.to(wide)).sum(-1, keepdim=True)
        by_q_BKGTd = torch.zeros_like(q_BKGTd, dtype=wide)
        returning: _Hop | None = None
        for source, kv in _around(torch.stack([k_BKTd, v_BKTd]), context.world):
            keys_BKTd, values_BKTd = kv
            by_kv = torch.zeros_like(kv, dtype=wide)
            for at_q, at_k, visible in context.pairs(source, spec.window):
                q_BKGQd, by_out_BKGQd = q_BKGTd[..., at_q, :], by_out_BKGTd[..., at_q, :]
                k_BKSd, v_BKSd = keys_BKTd[:, :, at_k], values_BKTd[:, :, at_k]
                scores_BKGQS = _scores(q_BKGQd, k_BKSd, visible, spec)
                weights_BKGQS = (scores_BKGQS - greatest_BKGT1[..., at_q, :]).exp() / total_BKGT1[..., at_q, :]
                by_weights_BKGQS = _times(by_out_BKGQd, v_BKSd.transpose(-1, -2))
                by_scores_BKGQS = weights_BKGQS * (by_weights_BKGQS - inner_BKGT1[..., at_q, :]) * spec.scale
                if spec.softcap is not None:
                    slope_BKGQS = 1 - (scores_BKGQS / spec.softcap).square()
                    by_scores_BKGQS *= slope_BKGQS.masked_fill_(~visible, 0.0)
                by_q_BKGTd[..., at_q, :] += _times(by_scores_BKGQS, k_BKSd)
                by_kv[0, :, :, at_k] += _transposed_times(by_scores_BKGQS, q_BKGQd)
                by_kv[1, :, :, at_k] += _transposed_times(weights_BKGQS, by_out_BKGQd)
            if returning is not None:
                by_kv += returning.arrived()
            returning = _Hop(by_kv, context.world)
        assert returning is not None
        by_k_BKTd, by_v_BKTd = returning.arrived().to(k_BKTd.dtype)
        return by_q_BKGTd.to(q_BKGTd.dtype), by_k_BKTd, by_v_BKTd, None, None


class _Hop:
    """A tensor on its way to the next process, while that of the one before comes here."""

    def __init__(self, x: Tensor, world: World) -> None:
        self._sent, self._received = x, torch.empty_like(x)
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, group=world.group, group_peer=(world.rank + 1) % world.size),
                dist.P2POp(dist.irecv, self._received, group=world.group, group_peer=(world.rank - 1) % world.size),
            ]
        )

    def arrived(self) -> Tensor:
        """What has come."""
        for work in self._works:
            work.wait()
        return self._received


def _around(x: Tensor, world: World) -> Iterator[tuple[int, Tensor]]:
    """Whose it is and the tensor, of each process, this one's first; the next one comes while one is used."""
    for step in range(world.size):
        hop = _Hop(x, world) if step + 1 < world.size else None
        yield (world.rank - step) % world.size, x
        if hop is not None:
            x = hop.arrived()


def _scores(q_BKGQd: Tensor, k_BKSd: Tensor, visible: Tensor, spec: AttentionSpec) -> Tensor:
    """What the softmax is taken of, B K G Q S; -inf where a query does not see a key."""
    scores_BKGQS = _times(q_BKGQd, k_BKSd.transpose(-1, -2)) * spec.scale
    if spec.softcap is not None:
        scores_BKGQS = spec.softcap * (scores_BKGQS / spec.softcap).tanh()
    return scores_BKGQS.masked_fill_(~visible, float("-inf"))


def _times(x_BKGQm: Tensor, y_BKmn: Tensor) -> Tensor:
    """Matrix product, B K G Q n, in `y`'s dtype, given in fp32: as queries of one head a group reads `y` once."""
    product_BKNn = x_BKGQm.to(y_BKmn.dtype).flatten(2, 3) @ y_BKmn
    return product_BKNn.unflatten(2, x_BKGQm.shape[2:4]).to(torch.promote_types(y_BKmn.dtype, torch.float32))


def _transposed_times(x_BKGQS: Tensor, y_BKGQd: Tensor) -> Tensor:
    """Product of the transposed matrix with another, B K S d, summed over the group, as `_times` has it."""
    product_BKSd = x_BKGQS.to(y_BKGQd.dtype).flatten(2, 3).transpose(-1, -2) @ y_BKGQd.flatten(2, 3)
    return product_BKSd.to(torch.promote_types(y_BKGQd.dtype, torch.float32))


def _finite(greatest: Tensor) -> Tensor:
    """With 0 in place of -inf, where nothing has been seen: so that all its exponentials are 0, not undefined."""
    return greatest.masked_fill(greatest == float("-inf"), 0.0)
