"""Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): orthogonal updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch.optim import Muon, Optimizer

from tallow.train.optimizers.adamw import make_adamw
from tallow.train.optimizers.groups import rate_groups, split_hidden
from tallow.train.optimizers.method import Common, Method, Parameters


class MuonMethod(Method):
    """Muon for the matrices of the layers, AdamW for all else.

    Its updates are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), so that one learning rate and one
    weight decay serve both.

    Args:
        name: The optimizer.
        momentum: Decay rate of the gradient's moment, of which a Nesterov step is taken.
        iterations: Of Newton and Schulz towards the nearest orthogonal matrix.
    """

    state_bytes: ClassVar[int] = 4

    name: Literal["muon"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    iterations: PositiveInt = 5

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        hidden, others = split_hidden(parameters)
        if not hidden:
            return make_adamw(others, common)
        muon = Muon(
            rate_groups(hidden, common, common.weight_decay),
            lr=common.learning_rate,
            weight_decay=common.weight_decay,
            momentum=self.momentum,
            ns_steps=self.iterations,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, *make_adamw(others, common)]
