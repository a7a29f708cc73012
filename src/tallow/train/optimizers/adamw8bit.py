"""AdamW with moments of 8 bits in groups of 32 (arXiv 2110.02861; companding as in FlashOptim)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch.optim import Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class AdamW8bitMethod(Method):
    """AdamW whose two moments take 8 bits each (arXiv 2110.02861), with a scale of 16 bits for every 32 of them.

    Args:
        name: The optimizer.
    """

    state_bytes: ClassVar[int] = 2
    moves_entries: ClassVar[bool] = True

    name: Literal["adamw8bit"]

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        from pytorch_optimizer import FlashAdamW

        groups = decay_groups(parameters, common)
        return [FlashAdamW(groups, lr=common.learning_rate, betas=common.betas, eps=common.epsilon)]
