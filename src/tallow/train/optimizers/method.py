"""What every optimizer says of itself, and what it is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from tallow.recipe import Section

Parameters = Mapping[str, nn.Parameter]
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Common:
    """Settings that optimizers share.

    Args:
        learning_rate: Its largest value.
        weight_decay: Decoupled; of matrices only.
        betas: Decay rates of the gradient's first and second moments, or what takes their place.
        epsilon: Addition to the denominator.
        rate_factors: Factors on the learning rate of single parameters, by name, where they are not 1.
    """

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    rate_factors: Mapping[str, float] = field(default_factory=dict)


class Method(Section):
    """An optimizer's own settings, and how it is made; its field `name` is the name in a recipe."""

    own_betas: ClassVar[tuple[float, float]] = (0.9, 0.95)
    """Used where the recipe names none."""
    state_bytes: ClassVar[int] = 8
    """Bytes that it keeps for each weight of a matrix, at least."""
    moves_entries: ClassVar[bool] = False
    """Whether each weight of a matrix moves by about the learning rate, whatever the matrix's size."""
    updates_in_backward: ClassVar[bool] = False
    """Whether it updates each parameter as soon as its gradient is known; then none is kept."""
    averages_weights: ClassVar[bool] = False
    """Whether the weights to use are not those to train with; such an optimizer wants no falling learning rate."""

    cannot_divide: ClassVar[tuple[str, ...]] = ()
    """Settings of `loop.parallel` that would leave it shares of matrices that it needs whole."""

    @abstractmethod
    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        """Optimizers that together have each parameter once."""

    def state_classes(self) -> Sequence[type]:
        """Classes of the objects in its state, beside tensors, numbers, lists and mappings."""
        return ()
