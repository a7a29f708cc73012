"""SOAP (arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch.optim import Optimizer

from tallow.train.optimizers.adamw import AdamWMethod, make_adamw
from tallow.train.optimizers.groups import rate_groups, split_hidden
from tallow.train.optimizers.method import Common, Method, Parameters


class SoapMethod(Method):
    """SOAP (arXiv 2409.11321) for the matrices of the layers, AdamW for all else. Its first step only measures.

    It needs whole matrices: neither `zero` nor `tensor` of `loop.parallel` goes with it. Its eigenbases amplify
    rounding, so that layouts and sizes of micro-batches differ by more than with others.

    Args:
        name: The optimizer.
        every: Steps between renewals of the eigenbases.
        largest_side: A matrix's side that is longer is left as it is.
    """

    own_betas: ClassVar[tuple[float, float]] = (0.95, 0.95)
    cannot_divide: ClassVar[tuple[str, ...]] = ("zero", "tensor")

    name: Literal["soap"]
    every: PositiveInt = 10
    largest_side: PositiveInt = 4096

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        hidden, others = split_hidden(parameters)
        rest = make_adamw(others, common, AdamWMethod.own_betas)
        if not hidden:
            return rest
        from pytorch_optimizer import SOAP

        soap = SOAP(
            rate_groups(hidden, common, common.weight_decay),
            lr=common.learning_rate,
            betas=common.betas,
            weight_decay=common.weight_decay,
            precondition_frequency=self.every,
            max_precondition_dim=self.largest_side,
            eps=common.epsilon,
        )
        return [soap, *rest]
