"""AdamW (arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch.optim import AdamW, Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class AdamWMethod(Method):
    """AdamW (arXiv 1711.05101).

    Args:
        name: The optimizer.
    """

    moves_entries: ClassVar[bool] = True

    name: Literal["adamw"] = "adamw"

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        return make_adamw(parameters, common)


def make_adamw(parameters: Parameters, common: Common, betas: tuple[float, float] | None = None) -> list[Optimizer]:
    """AdamW in one pass over memory; none where there are no parameters.

    Args:
        betas: In place of the common ones: of parameters that another optimizer leaves to AdamW.
    """
    if not parameters:
        return []
    groups = decay_groups(parameters, common)
    return [AdamW(groups, lr=common.learning_rate, betas=betas or common.betas, eps=common.epsilon, fused=True)]
