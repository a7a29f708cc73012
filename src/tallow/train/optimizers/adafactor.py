"""Adafactor (arXiv 1804.04235): a second moment for each row and column instead of each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch.optim import Adafactor, Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class AdafactorMethod(Method):
    """Adafactor (arXiv 1804.04235). Its learning rate is relative to the size of a matrix's weights.

    It needs whole matrices: neither `zero` nor `tensor` nor `expert` of `loop.parallel` goes with it.

    Args:
        name: The optimizer.
        clip_threshold: Largest root mean square of an update, before the learning rate (section 6).
    """

    state_bytes: ClassVar[int] = 0
    cannot_divide: ClassVar[tuple[str, ...]] = ("zero", "tensor", "expert")

    name: Literal["adafactor"]
    clip_threshold: PositiveFloat = 1.0

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        groups = decay_groups(parameters, common)
        return [Adafactor(groups, lr=common.learning_rate, d=self.clip_threshold)]
