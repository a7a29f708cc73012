"""Loss on held-out text, as training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tallow.data.batch import Packed
from tallow.objectives import Objective, TokenModel
from tallow.objectives.loss import summed_loss
from tallow.parallel import ALONE, World
from tallow.tokenizer.tokenizer import Tokenizer


class HeldOut:
    """Batches that are scored again and again.

    Args:
        batches: This process's share of them.
        bytes_V: Bytes of text that each token stands for; None: bits per byte are not wanted.
    """

    def __init__(
        self,
        model: TokenModel,
        objective: Objective,
        batches: Sequence[Packed],
        bytes_V: Tensor | None = None,
        world: World = ALONE,
    ) -> None:
        self.model, self.objective, self.batches, self.bytes_V, self.world = model, objective, batches, bytes_V, world

    def __call__(self) -> dict[str, float]:
        """`validation_loss`, in nats a target token, and `validation_bits_per_byte` of the text of all targets."""
        nats = targets = text_bytes = 0.0
        for packed in self.batches:
            example = self.objective(packed)
            nats += summed_loss(self.model, example).item()
            targets += example.loss_mask_BT.sum().item()
            if self.bytes_V is not None:
                text_bytes += self.bytes_V[example.targets_BT[example.loss_mask_BT]].sum().item()
        nats, targets, text_bytes = self.world.sum(nats, targets, text_bytes)
        result = {"validation_loss": nats / targets} if targets else {}
        return result | ({"validation_bits_per_byte": nats / math.log(2) / text_bytes} if text_bytes else {})


def bytes_of_tokens(tokenizer: Tokenizer) -> Tensor:
    """Bytes of text that each token stands for, int64, V; none for special tokens."""
    return torch.tensor(
        [0 if id in tokenizer.special_ids else len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    )
