"""What an objective makes of a batch, and what it asks of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tallow.data.batch import Packed
from tallow.models.blocks.context import Context, Movable
from tallow.models.blocks.send import send


@dataclass(frozen=True)
class Example:
    """Inputs of a model and what it should predict from them.

    Args:
        inputs_BT: Token ids, int64.
        targets_BT: The token to predict at each place, int64.
        loss_mask_BT: Whether the place counts, bool; on the CPU, so that nobody waits for a GPU to know the places.
        context: Positions, and which tokens see which.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    loss_mask_BT: Tensor
    context: Context

    def to(self, device: torch.device) -> Example:
        """The same for a model on a device, without waiting for it."""
        assert isinstance(self.context, Movable)
        inputs_BT, targets_BT = (send(tensor, device) for tensor in (self.inputs_BT, self.targets_BT))
        return Example(inputs_BT, targets_BT, self.loss_mask_BT, self.context.to(device))


Objective = Callable[[Packed], Example]


class TokenModel(Protocol):
    """A model that predicts a token at each place: hidden states first, logits from any part of them."""

    def __call__(self, inputs_BT: Tensor, context: Context) -> Tensor:
        """Hidden states, B T D."""
        ...

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits, with V in place of D."""
        ...
