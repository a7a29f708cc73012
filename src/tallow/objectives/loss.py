"""Cross-entropy summed over target tokens, in pieces, so that the logits of a whole batch never exist at once.

Logits are computed for target places alone, in the model's dtype; their log-softmax is fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.objectives.example import Example, TokenModel

# Smaller pieces make matrix products slower, larger ones only use more memory.
PIECE_TOKENS = 512


def summed_loss(model: TokenModel, example: Example) -> Tensor:
    """Negative log-likelihood of all target tokens together, in nats: a float64 scalar without a gradient."""
    with torch.no_grad():
        hidden_ND = model(example.inputs_BT, example.context).flatten(0, 1)
        targets_N = example.targets_BT.flatten()
        losses = [_cross_entropy(model.logits(hidden_ND[piece]), targets_N[piece]) for piece in _pieces(example)]
    return _total(losses)


def backpropagate(model: TokenModel, example: Example) -> Tensor:
    """Add the gradient of the summed loss to the model's parameters, and return that loss.

    Each piece goes back to the hidden states as soon as its loss is known; from there all go through the model
    together. So memory holds one piece's logits, and nothing is computed twice.
    """
    hidden_BTD = model(example.inputs_BT, example.context)
    hidden_ND = hidden_BTD.detach().flatten(0, 1)
    gradient_ND = torch.zeros_like(hidden_ND)
    targets_N = example.targets_BT.flatten()
    losses = []
    for piece in _pieces(example):
        piece_ND = hidden_ND[piece].requires_grad_()
        loss = _cross_entropy(model.logits(piece_ND), targets_N[piece])
        loss.backward()
        assert piece_ND.grad is not None
        gradient_ND[piece] = piece_ND.grad
        losses.append(loss.detach())
    if hidden_BTD.requires_grad:  # not where the output matrix alone is trained
        hidden_BTD.backward(gradient_ND.view_as(hidden_BTD))
    return _total(losses)


def _pieces(example: Example) -> tuple[Tensor, ...]:
    """Indices of the target places among all places, some at a time."""
    return example.loss_mask_BT.flatten().nonzero().flatten().split(PIECE_TOKENS)


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def _total(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).double().sum() if losses else torch.zeros((), dtype=torch.float64)
