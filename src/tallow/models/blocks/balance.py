"""The auxiliary loss that evens the use of experts, sequence by sequence.

For a sequence s of n tokens, each computed by K of E experts, it is `Σ_e f_se P_se`, where f_se is the share of expert
e in the n K choices, times E, and P_se the mean of its share of the scores (arXiv 2412.19437, section 2.1.2; for whole
batches: 2101.03961, section 2.2). It is 1 where all experts are used alike. Summed over tokens, as the loss of a batch
is, a sequence counts n times: so how sequences are packed into rows, and rows into batches, changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tallow.models.blocks.context import Context


def add_balance_loss(scores_NE: Tensor, experts_NK: Tensor, context: Context, weight: float) -> Tensor:
    """The scores as they are; in the backward pass their gradient is that of the loss plus the auxiliary loss.

    The choice has no gradient, so that of the auxiliary loss by the share of expert e in the scores of a token of
    sequence s is just `weight · f_se`, and whoever trains the model need not know of it.

    Args:
        scores_NE: Not negative, for all places of all rows one after the other.
        experts_NK: The experts chosen.
        context: Says where sequences begin, and what is padding, which does not count.
        weight: Factor of the auxiliary loss.
    """
    totals_N1 = scores_NE.sum(-1, keepdim=True)
    loads_NE = relative_loads(experts_NK, context, scores_NE.shape[1])
    return _AddGradient.apply(scores_NE / totals_N1, weight * loads_NE) * totals_N1


def relative_loads(experts_NK: Tensor, context: Context, num_experts: int) -> Tensor:
    """How often the sequence of each place uses each expert, in multiples of the mean: N E, fp32; 0 at padding."""
    chosen_NE = torch.zeros(len(experts_NK), num_experts, device=experts_NK.device).scatter_(1, experts_NK, 1.0)
    if context.padding_BT is not None:
        chosen_NE[context.padding_BT.flatten()] = 0.0
    loads_NE = context.sum_over_sequences(chosen_NE)
    relative_NE = loads_NE / loads_NE.mean(1, keepdim=True).clamp(min=1e-9)  # a sequence of padding has no loads
    return relative_NE if context.padding_BT is None else relative_NE * ~context.padding_BT.flatten()[:, None]


class _AddGradient(torch.autograd.Function):
    """Leaves values as they are and adds a constant to their gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [added] = ctx.saved_tensors
        return gradients[0] + added, None
