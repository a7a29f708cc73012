"""LOMO and AdaLomo: each parameter is updated as soon as its gradient is known, which then is forgotten.

So there is never more than one gradient, and no state (LOMO, arXiv 2306.09782) or next to none (AdaLomo, 2310.10195).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, overload

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Groups, Method, Parameters


class LomoMethod(Method):
    """LOMO (arXiv 2306.09782): plain gradient descent, one parameter at a time.

    Instead of the norm of all gradients, which is known too late, that of each parameter is clipped
    (`loop.clip_norm` does nothing).

    Args:
        name: The optimizer.
        clip: Largest norm of a parameter's gradient.
    """

    state_bytes: ClassVar[int] = 0
    updates_in_backward: ClassVar[bool] = True

    name: Literal["lomo"]
    clip: PositiveFloat = 1.0

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        return [Lomo(decay_groups(parameters, common), common.learning_rate, self.clip)]


class AdaLomoMethod(Method):
    """AdaLomo (arXiv 2310.10195): with a second moment by rows and columns, as Adafactor has it.

    `loop.clip_norm` does nothing: each parameter's update is brought to the size of its weights.

    Args:
        name: The optimizer.
        decay: Power of the step by which the moments forget: 1 - step^-decay of them stays.
        least_size: Root mean square that weights are taken for at least.
    """

    state_bytes: ClassVar[int] = 0
    updates_in_backward: ClassVar[bool] = True

    name: Literal["adalomo"]
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    least_size: PositiveFloat = 1e-3

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        return [AdaLomo(decay_groups(parameters, common), common.learning_rate, self.decay, self.least_size)]


class OneByOne(Optimizer):
    """Updates a parameter without looking at others."""

    @abstractmethod
    def update_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update a parameter by its gradient, which may be written to."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update_one(parameter, parameter.grad, group)
        return None


class Lomo(OneByOne):
    """Gradient descent with decoupled decay."""

    def __init__(self, groups: Groups, lr: float, clip: float) -> None:
        super().__init__(groups, {"lr": lr, "clip": clip, "weight_decay": 0.0})

    def update_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        scale = (group["clip"] / (gradient.norm() + 1e-12)).clamp(max=1.0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(gradient * scale, alpha=-group["lr"])


class AdaLomo(OneByOne):
    """Algorithm 1 of the paper; vectors have a second moment for each entry."""

    def __init__(self, groups: Groups, lr: float, decay: float, least_size: float) -> None:
        super().__init__(groups, {"lr": lr, "decay": decay, "least_size": least_size, "weight_decay": 0.0})

    def update_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, square = self.state[parameter], gradient.square()
        step = state["step"] = state.get("step", 0) + 1
        if parameter.ndim < 2:
            variance = _remember(state, "square", square, step, group["decay"])
        else:
            rows = _remember(state, "rows", square.mean(-1, keepdim=True), step, group["decay"])
            columns = _remember(state, "columns", square.mean(-2, keepdim=True), step, group["decay"])
            variance = rows * columns / rows.mean(-2, keepdim=True).clamp(min=1e-30)
        update = gradient / variance.clamp(min=1e-30).sqrt()
        update = update / _size(update).clamp(min=1.0) * _size(parameter).clamp(min=group["least_size"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def _remember(state: dict[str, Any], name: str, value: Tensor, step: int, decay: float) -> Tensor:
    """Take a value into the moving average of this name."""
    if isinstance(value, DTensor):  # each process may have its rows' part of a sum
        value = value.redistribute(placements=[Replicate() if p.is_partial() else p for p in value.placements])
    if name not in state:
        state[name] = torch.zeros_like(value)
    state[name].lerp_(value, step**-decay)
    return state[name]


def _size(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.square().mean().sqrt()
