"""Shampoo (arXiv 1802.09568), in blocks and with the length of RMSProp's step (arXiv 2002.09018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import PositiveInt
from torch.optim import Optimizer

from tallow.train.optimizers.adamw import make_adamw
from tallow.train.optimizers.groups import rate_groups, split_hidden
from tallow.train.optimizers.method import Common, Method, Parameters


class ShampooMethod(Method):
    """Shampoo (arXiv 1802.09568, 2002.09018) for the matrices of the layers, AdamW for all else.

    It needs whole matrices: neither `zero` nor `tensor` of `loop.parallel` goes with it.

    Args:
        name: The optimizer.
        every: Steps between computations of the inverse roots.
        block_size: Larger matrices are preconditioned in blocks of such sides.
    """

    state_bytes: ClassVar[int] = 12
    cannot_divide: ClassVar[tuple[str, ...]] = ("zero", "tensor")

    name: Literal["shampoo"]
    every: PositiveInt = 10
    block_size: PositiveInt = 512

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        hidden, others = split_hidden(parameters)
        rest = make_adamw(others, common)
        if not hidden:
            return rest
        from pytorch_optimizer import ScalableShampoo
        from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

        shampoo = ScalableShampoo(
            rate_groups(hidden, common, common.weight_decay),
            lr=common.learning_rate,
            betas=common.betas,
            moving_average_for_momentum=True,
            weight_decay=common.weight_decay,
            decoupled_weight_decay=True,
            preconditioning_compute_steps=self.every,
            block_size=self.block_size,
            shape_interpretation=False,
            graft_type=LayerWiseGrafting.RMSPROP,
            nesterov=False,
        )
        return [shampoo, *rest]

    def state_classes(self) -> Sequence[type]:
        from pytorch_optimizer.optimizer.utils.graft import RMSPropGraft
        from pytorch_optimizer.optimizer.utils.partition import BlockPartitioner
        from pytorch_optimizer.optimizer.utils.preconditioner import PreConditioner

        return (RMSPropGraft, PreConditioner, BlockPartitioner)
