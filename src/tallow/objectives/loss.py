"""Cross-entropy summed over target tokens, in pieces, so that the logits of a whole batch never exist at once.

Logits are computed for target places alone, in the model's dtype; their log-softmax is fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.objectives.example import Example, TokenModel

# Smaller pieces make matrix products slower, larger ones only use more memory.
PIECE_TOKENS = 512
ROUND_TOKENS = 128
IGNORED = -100


def summed_loss(model: TokenModel, example: Example) -> Tensor:
    """Negative log-likelihood of all target tokens together, in nats: a float64 scalar without a gradient."""
    with torch.no_grad():
        hidden_ND = model(example.inputs_BT, example.context).flatten(0, 1)
        losses = [_cross_entropy(model.logits(hidden_ND[places]), targets_N) for places, targets_N in _pieces(example)]
    return _total(losses)


def backpropagate(model: TokenModel, example: Example, *, drawn_targets: bool = False) -> Tensor:
    """Add the gradient of the summed loss to the model's parameters, and return that loss.

    Each piece goes back to the hidden states as soon as its loss is known; from there all go through the model
    together. So memory holds one piece's logits, and nothing is computed twice.

    Args:
        drawn_targets: The targets are drawn from what the model itself predicts at each target place.
    """
    piece_loss = _drawn_loss if drawn_targets else _cross_entropy
    hidden_BTD = model(example.inputs_BT, example.context)
    hidden_ND = hidden_BTD.detach().flatten(0, 1)
    gradient_ND = torch.zeros_like(hidden_ND)
    losses = []
    for places, targets_N in _pieces(example):
        piece_ND = hidden_ND[places].requires_grad_()
        loss = piece_loss(model.logits(piece_ND), targets_N)
        loss.backward()
        assert piece_ND.grad is not None
        gradient_ND.index_add_(0, places, piece_ND.grad)
        losses.append(loss.detach())
    if hidden_BTD.requires_grad:  # not where the output matrix alone is trained
        hidden_BTD.backward(gradient_ND.view_as(hidden_BTD))
    return _total(losses)


def _pieces(example: Example) -> Iterator[tuple[Tensor, Tensor]]:
    """Some target places at a time (among all places of all rows), and their targets.

    The last piece is filled up to a multiple of `ROUND_TOKENS` with places whose target is ignored: for each new
    number of rows oneDNN makes and keeps another program of a megabyte or more, and no two counts are alike.
    """
    targets_N = example.targets_BT.flatten()
    for places in example.loss_mask_BT.flatten().nonzero().flatten().split(PIECE_TOKENS):
        filling = -len(places) % min(ROUND_TOKENS, PIECE_TOKENS)
        yield F.pad(places, (0, filling)), F.pad(targets_N[places], (0, filling), value=IGNORED)


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum", ignore_index=IGNORED)


def _drawn_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy towards tokens as the model predicts them, in place of the targets that count."""
    drawn_N = logits_NV.detach().float().softmax(-1).multinomial(1)[:, 0]
    return _cross_entropy(logits_NV, torch.where(targets_N == IGNORED, targets_N, drawn_N))


def _total(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).double().sum() if losses else torch.zeros((), dtype=torch.float64)
