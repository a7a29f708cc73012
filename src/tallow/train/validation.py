"""Loss on held-out text, as training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tallow.data.batch import Packed
from tallow.objectives import Objective
from tallow.parallel import Layout
from tallow.tokenizer.tokenizer import Tokenizer


class HeldOut:
    """Batches that are scored again and again.

    Args:
        batches: This process's share of them.
        bytes_V: Bytes of text that each token stands for; None: bits per byte are not wanted.
    """

    def __init__(self, objective: Objective, batches: Sequence[Packed], bytes_V: Tensor | None = None) -> None:
        self.objective, self.batches = objective, batches
        self.text_bytes = 0.0
        if bytes_V is not None:
            for example in map(objective, batches):
                self.text_bytes += bytes_V[example.targets_BT[example.loss_mask_BT]].sum().item()

    def __call__(self, layout: Layout) -> dict[str, float]:
        """`validation_loss`, in nats a target token, and `validation_bits_per_byte` of the text of all targets."""
        nats = targets = 0.0
        for packed in layout.level(self.batches):
            loss, count = layout.score(packed, self.objective)
            nats, targets = nats + loss, targets + count
        nats, targets = layout.workers.peers.sum(*layout.sum(nats, targets))
        [text_bytes] = layout.workers.peers.sum(*layout.mesh.data.sum(self.text_bytes))
        result = {"validation_loss": nats / targets} if targets else {}
        return result | ({"validation_bits_per_byte": nats / math.log(2) / text_bytes} if text_bytes else {})


def bytes_of_tokens(tokenizer: Tokenizer) -> Tensor:
    """Bytes of text that each token stands for, int64, V; none for special tokens."""
    return torch.tensor(
        [0 if id in tokenizer.special_ids else len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    )
