"""Lion (arXiv 2302.06675): the sign of a momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch.optim import Optimizer

from tallow.train.optimizers.groups import can_go_together, decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class LionMethod(Method):
    """Lion (arXiv 2302.06675). It wants a learning rate 3 to 10 times smaller than AdamW's, and as much more decay.

    Args:
        name: The optimizer.
    """

    own_betas: ClassVar[tuple[float, float]] = (0.9, 0.99)
    state_bytes: ClassVar[int] = 4
    moves_entries: ClassVar[bool] = True

    name: Literal["lion"]

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        from pytorch_optimizer import Lion

        groups, together = decay_groups(parameters, common), can_go_together(parameters)
        return [Lion(groups, lr=common.learning_rate, betas=common.betas, foreach=together)]
