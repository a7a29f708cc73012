"""Context parallelism: several processes share each row, so that rows may be longer than one can hold.

The model is left as it is: what is changed is the objective, whose examples come to hold the places of this process
alone, and a context that attends to all of them.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.models.blocks.attention import Attention
from tallow.objectives import Objective
from tallow.objectives.example import Example
from tallow.parallel.all_to_all import AllToAllContext
from tallow.parallel.config import ParallelConfig
from tallow.parallel.places import Cut
from tallow.parallel.ring import RingContext
from tallow.parallel.world import World

Way = Literal["all_to_all", "ring"]


def share_places(objective: Objective, way: Way, world: World) -> Objective:
    """The objective whose examples have this process's share of the places of each row.

    Rows of any length can be shared: where it cannot be divided, the last places are filling, which no token sees.

    Args:
        way: How attention sees the places of the others.
        world: Those that share the rows; all must use each example alike.
    """

    def shared(packed: Packed) -> Example:
        example = objective(packed)
        cut = Cut(example.inputs_BT.shape[1], world.size, chunks_each=2 if way == "ring" else 1)

        def mine(x_BT: Tensor) -> Tensor:
            return cut.take(x_BT, world.rank, 0)

        context = (RingContext if way == "ring" else AllToAllContext)(example.context, cut, world)
        return Example(mine(example.inputs_BT), mine(example.targets_BT), mine(example.loss_mask_BT), context)

    return shared


def refuse_indivisible(model: nn.Module, config: ParallelConfig) -> None:
    """Refuse a model whose heads cannot be divided, where they must be.

    Raises:
        UsageError: They cannot.
    """
    processes = config.context * config.tensor
    for module in model.modules() if config.attention == "all_to_all" else ():
        if isinstance(module, Attention) and module.num_heads % processes:
            raise UsageError(
                f"{processes} processes (loop.parallel.context × tensor) cannot share {module.num_heads} heads evenly",
                "choose divisors, or set loop.parallel.attention to ring",
            )
