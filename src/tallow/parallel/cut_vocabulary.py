"""Losses from logits of which each process has those of some tokens: no process ever holds all (arXiv 1909.08053,
section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tallow.kernels.fused import IGNORED


class CutVocabulary:
    """Losses from this process's share of the logits, the same ones on all processes of a group.

    Args:
        first: The token of its first logit.
        group: The processes that share the vocabulary, in its order; None: all.
    """

    def __init__(self, first: int, group: dist.ProcessGroup | None) -> None:
        self.first, self.group = first, group

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Summed over the targets, in nats; a target `IGNORED` does not count."""
        return _CrossEntropy.apply(logits_NV.float(), targets_N, self.first, self.group)

    def draw(self, logits_NV: Tensor) -> Tensor:
        """A token of each place, N, as all logits predict it.

        It is that with the largest sum of logit and Gumbel noise (arXiv 1611.01144, section 2).
        """
        generator = torch.Generator(logits_NV.device)
        # all processes draw the same number here, and then noise of their own
        generator.manual_seed(int(torch.randint(2**62, ())) + dist.get_rank(self.group))
        noise_NV = torch.empty_like(logits_NV, dtype=torch.float32).exponential_(generator=generator).log_().neg_()
        best_N, token_N = (logits_NV.float() + noise_NV).max(-1)
        best_2N = torch.stack((best_N.double(), (token_N + self.first).double()))
        of_all = [torch.empty_like(best_2N) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(of_all, best_2N, group=self.group)
        all_P2N = torch.stack(of_all)
        winner_N = all_P2N[:, 0].argmax(0, keepdim=True)
        return all_P2N[:, 1].gather(0, winner_N)[0].long()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy from the greatest logits, the sums of exponentials and the targets' logits of all processes."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, first: int, group: dist.ProcessGroup | None) -> Tensor:
        places_N, width = targets_N - first, logits_NV.shape[1]
        here_N, counted_N = (places_N >= 0) & (places_N < width), targets_N != IGNORED
        places_N1 = places_N.clamp(0, width - 1)[:, None]
        peak_N = logits_NV.amax(-1)
        dist.all_reduce(peak_N, dist.ReduceOp.MAX, group)
        shifted_NV = logits_NV - peak_N[:, None]
        of_targets_N = torch.where(here_N, shifted_NV.gather(1, places_N1)[:, 0], 0.0)
        exponentials_NV = shifted_NV.exp_()
        sums_2N = torch.stack((exponentials_NV.sum(-1), of_targets_N))
        dist.all_reduce(sums_2N, group=group)
        probabilities_NV = exponentials_NV.div_(sums_2N[0][:, None])
        ctx.save_for_backward(probabilities_NV, places_N1, here_N, counted_N)
        return ((sums_2N[0].log() - sums_2N[1]) * counted_N).sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        probabilities_NV, places_N1, here_N, counted_N = ctx.saved_tensors
        gradient_NV = probabilities_NV.scatter_add(1, places_N1, -here_N[:, None].to(probabilities_NV.dtype))
        return gradient_NV * (counted_N[:, None] * outer[0]), None, None, None
