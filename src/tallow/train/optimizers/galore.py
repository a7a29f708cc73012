"""GaLore (arXiv 2403.03507): AdamW on the gradient's projection to a space of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch.optim import Optimizer

from tallow.train.optimizers.adamw import make_adamw
from tallow.train.optimizers.groups import rate_groups, split_hidden
from tallow.train.optimizers.method import Common, Method, Parameters


class GaLoreMethod(Method):
    """GaLore (arXiv 2403.03507) for the matrices of the layers, AdamW for all else.

    Args:
        name: The optimizer.
        rank: Of the projection.
        every: Steps between renewals of the projection.
        scale: Factor on updates of low rank (α).
    """

    state_bytes: ClassVar[int] = 0

    name: Literal["galore"]
    rank: PositiveInt = 128
    every: PositiveInt = 200
    scale: PositiveFloat = 0.25

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        hidden, others = split_hidden(parameters)
        if not hidden:
            return make_adamw(others, common)
        from pytorch_optimizer import GaLore

        projection = {
            "rank": self.rank,
            "update_proj_gap": self.every,
            "scale": self.scale,
            "projection_type": "std",
        }
        galore = GaLore(
            [{**group, **projection} for group in rate_groups(hidden, common, common.weight_decay)],
            lr=common.learning_rate,
            betas=common.betas,
            weight_decay=common.weight_decay,
            eps=common.epsilon,
        )
        return [galore, *make_adamw(others, common)]

    def state_classes(self) -> Sequence[type]:
        from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

        return (GaLoreProjector,)
