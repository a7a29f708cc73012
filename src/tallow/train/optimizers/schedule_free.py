"""Schedule-free AdamW (arXiv 2405.15682): an average of all weights so far in place of a falling learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch.optim import Optimizer

from tallow.train.optimizers.groups import can_go_together, decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class ScheduleFreeMethod(Method):
    """Schedule-free AdamW (arXiv 2405.15682). Its schedule is `constant`, after the warm-up.

    What is validated and saved is the average of the weights; checkpoints hold those that are trained.

    Args:
        name: The optimizer.
    """

    own_betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    averages_weights: ClassVar[bool] = True
    moves_entries: ClassVar[bool] = True

    name: Literal["schedule_free"]

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        from pytorch_optimizer import ScheduleFreeAdamW

        groups, together = decay_groups(parameters, common), can_go_together(parameters)
        settings = {"betas": common.betas, "eps": common.epsilon, "foreach": together}
        return [ScheduleFreeAdamW(groups, lr=common.learning_rate, **settings)]
