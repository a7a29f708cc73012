"""Cross-entropy summed over target tokens, in pieces, so that the logits of a whole batch never exist at once.

Logits are computed for target places alone, in the model's dtype; their log-softmax is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F

from tallow.kernels.fused import IGNORED, cross_entropy
from tallow.models.blocks.send import send
from tallow.objectives.example import Example, TokenModel

# Smaller pieces make matrix products slower, larger ones only use more memory. On a GPU the gradient of the output
# layer, which each piece adds to, would take longer than the products.
PIECE_TOKENS, GPU_PIECE_TOKENS = 512, 2048
ROUND_TOKENS = 128
ADDED_VALUES = 1 << 18
"""At a time: a megabyte of float32, which stays in the processor's cache."""


class Vocabulary(Protocol):
    """Losses from logits."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Summed over the targets, in nats; a target `IGNORED` does not count."""
        ...

    def draw(self, logits_NV: Tensor) -> Tensor:
        """A token of each place, N, as the logits predict it."""
        ...


class WholeVocabulary:
    """Losses from the logits of all tokens."""

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Summed over the targets, in nats; a target `IGNORED` does not count."""
        return cross_entropy(logits_NV, targets_N)

    def draw(self, logits_NV: Tensor) -> Tensor:
        """A token of each place, N, as the logits predict it."""
        return logits_NV.float().softmax(-1).multinomial(1)[:, 0]


WHOLE = WholeVocabulary()


def summed_loss(
    model: TokenModel, example: Example, *, drawn_targets: bool = False, vocabulary: Vocabulary = WHOLE
) -> Tensor:
    """Negative log-likelihood of all target tokens together, in nats: a float64 scalar.

    Args:
        drawn_targets: The targets are drawn from what the model itself predicts at each target place.
        vocabulary: Of whose tokens the model gives logits.
    """
    hidden_BTD = model(example.inputs_BT, example.context)
    return loss_of_hidden(model.logits, hidden_BTD, example, drawn_targets=drawn_targets, vocabulary=vocabulary)


def loss_of_hidden(
    logits: Callable[[Tensor], Tensor],
    hidden_BTD: Tensor,
    example: Example,
    *,
    drawn_targets: bool = False,
    vocabulary: Vocabulary = WHOLE,
) -> Tensor:
    """`summed_loss`, of hidden states and what makes logits of them.

    Where gradients are wanted, those by the hidden states and by the output layer's parameters are computed here, piece
    by piece, and handed on when the loss goes back. So memory holds one piece's logits, and nothing is computed twice.
    """

    def piece_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        if drawn_targets:
            targets_N = torch.where(targets_N == IGNORED, targets_N, vocabulary.draw(logits_NV.detach()))
        return vocabulary.cross_entropy(logits_NV, targets_N)

    hidden_ND = hidden_BTD.flatten(0, 1)
    if not torch.is_grad_enabled():
        return _total([piece_loss(logits(hidden_ND[places]), targets_N) for places, targets_N in _pieces(example)])
    apart_ND = hidden_ND.detach()
    gradient_ND = torch.zeros_like(apart_ND)
    gradients: dict[Tensor, Tensor] = {}
    losses: list[Tensor] = []
    for places, targets_N in _pieces(example):
        piece_ND = apart_ND[places].requires_grad_()
        # a view, since torch's counter of operations cannot follow leaves into modules
        loss = piece_loss(logits(piece_ND.view_as(piece_ND)), targets_N)
        leaves = {leaf: edge for leaf, edge in _leaves(loss).items() if leaf is not piece_ND}
        gradient_nD, *of_leaves = torch.autograd.grad(loss, [get_gradient_edge(piece_ND), *leaves.values()])
        gradient_ND.index_add_(0, places, gradient_nD)
        for leaf, gradient in zip(leaves, of_leaves, strict=True):
            gradients[leaf] = _add(gradient, gradients[leaf]) if leaf in gradients else gradient.to(leaf.dtype)
        losses.append(loss.detach())
    total = _WithGradients.apply(_total(losses), [gradient_ND], hidden_ND)
    if not gradients:
        return total
    # apart, so that a pipeline can ask for the gradient by the hidden states first and for the others later
    return total + _WithGradients.apply(torch.zeros_like(total), list(gradients.values()), *gradients)


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients by some tensors are known."""

    @staticmethod
    def forward(ctx: Any, scalar: Tensor, gradients: list[Tensor], *_tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return scalar.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        [factor] = outer
        if factor.device.type == "cpu" and factor.item() == 1.0:  # to ask a GPU would be to wait for it
            return None, None, *gradients
        return None, None, *(gradient * factor for gradient in gradients)


def _add(gradient: Tensor, total: Tensor) -> Tensor:
    """Add to a total, perhaps of another dtype.

    On a CPU torch brings what it adds to that dtype first. So it is a few rows at a time, or for a moment there would
    be one more output layer in memory.
    """
    if gradient.dtype == total.dtype or type(total) is not Tensor or not total.is_cpu or total.dim() == 0:
        return total.add_(gradient)
    rows = max(1, ADDED_VALUES // total[0].numel())
    for part, into in zip(gradient.split(rows), total.split(rows), strict=True):
        into.add_(part)
    return total


def _leaves(loss: Tensor) -> dict[Tensor, GradientEdge]:
    """The tensors that a loss was computed from and that want a gradient, and where it comes in.

    Of what is rounded first (by autocast) that is where the gradient is still of the lesser precision: half the memory.
    """
    leaves: dict[Tensor, GradientEdge] = {}
    seen: set[Node] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [function for function, _ in node.next_functions]
        rounds = node.name() == "ToCopyBackward0"
        source = inputs[0] if rounds else node
        if (leaf := getattr(source, "variable", None)) is not None:
            leaves[leaf] = GradientEdge(node, 0)
        else:
            ahead += inputs
    return leaves


def _pieces(example: Example) -> Iterator[tuple[Tensor, Tensor]]:
    """Some target places at a time (among all places of all rows), and their targets.

    The last piece is filled up to a multiple of `ROUND_TOKENS` with places whose target is ignored: for each new
    number of rows oneDNN makes and keeps another program of a megabyte or more, and no two counts are alike.
    """
    targets_N = example.targets_BT.flatten()
    device = targets_N.device
    piece = PIECE_TOKENS if device.type == "cpu" else GPU_PIECE_TOKENS
    for places in example.loss_mask_BT.flatten().nonzero().flatten().split(piece):
        # where there is no target, one ignored piece gives the output layer its gradient, zero: others may wait for it
        filling = -len(places) % min(ROUND_TOKENS, piece) if len(places) else 1
        places = send(places, device)
        yield F.pad(places, (0, filling)), F.pad(targets_N[places], (0, filling), value=IGNORED)


def _total(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).double().sum() if losses else torch.zeros((), dtype=torch.float64)
