"""Sophia (arXiv 2305.14342): a momentum over the loss's curvature, clipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, overload

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Groups, Method, Parameters

TINY = 1e-12


class SophiaMethod(Method):
    """Sophia-G (arXiv 2305.14342): every few steps a second backward pass estimates the curvature of the loss.

    It does so with targets that it draws (algorithm 2), others in each layout and with each size of micro-batches: what
    is learned is then the same in distribution only.

    Args:
        name: The optimizer.
        every: Steps between estimates.
        curvature_scale: Factor on the curvature (γ): with less, more of the updates are clipped to the learning rate.
    """

    own_betas: ClassVar[tuple[float, float]] = (0.96, 0.99)

    name: Literal["sophia"]
    every: PositiveInt = 10
    curvature_scale: PositiveFloat = 0.05

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        groups = decay_groups(parameters, common)
        return [Sophia(groups, common.learning_rate, common.betas, self.every, self.curvature_scale)]


class Sophia(Optimizer):
    """Algorithm 3 of the paper; whoever trains gives the estimates of the curvature's diagonal to `add_curvature`.

    Args:
        groups: Of parameters.
        lr: Learning rate.
        betas: Decay rates of the momentum and of the curvature.
        curvature_every: Steps between estimates.
        curvature_scale: Factor on the curvature.
    """

    def __init__(
        self, groups: Groups, lr: float, betas: tuple[float, float], curvature_every: int, curvature_scale: float
    ) -> None:
        self.curvature_every = curvature_every
        defaults = {"lr": lr, "betas": betas, "curvature_scale": curvature_scale, "weight_decay": 0.0}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "momentum": torch.zeros_like(parameter),
                    "curvature": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def add_curvature(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Take up an estimate of the curvature's diagonal.

        Args:
            estimate: Gives that of a parameter from its gradient.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["curvature"].lerp_(estimate(parameter.grad), 1 - group["betas"][1])

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
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["momentum"].lerp_(parameter.grad, 1 - group["betas"][0])
                denominator = (state["curvature"] * group["curvature_scale"]).clamp_(min=TINY)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_((state["momentum"] / denominator).clamp_(-1, 1), alpha=-group["lr"])
        return None
