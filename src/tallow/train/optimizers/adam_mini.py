"""Adam-mini (arXiv 2406.16793): one second moment for each row of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, overload

import torch
from torch.optim import Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Groups, Method, Parameters


class AdamMiniMethod(Method):
    """Adam-mini (arXiv 2406.16793): a row of a matrix, which is a token or an output neuron, shares its second moment.

    Args:
        name: The optimizer.
    """

    state_bytes: ClassVar[int] = 4
    moves_entries: ClassVar[bool] = True

    name: Literal["adam_mini"]

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        groups = decay_groups(parameters, common)
        return [AdamMini(groups, common.learning_rate, common.betas, common.epsilon)]


class AdamMini(Optimizer):
    """AdamW whose second moment is the mean over the last dimension of what has more than one.

    The paper takes a whole head of queries and keys together (section 2.3); rows divide its blocks further, which
    needs no knowledge of the model, and next to no more memory. Vectors are updated as by AdamW.
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient (algorithm 1)."""
        assert closure is None
        for group in self.param_groups:
            group["step"] += 1
            (beta1, beta2), step = group["betas"], group["step"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(_shared_square(parameter))
                state["exp_avg"].lerp_(gradient, 1 - beta1)
                state["exp_avg_sq"].lerp_(_shared_square(gradient), 1 - beta2)
                denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - beta1**step))
        return None


def _shared_square(values: torch.Tensor) -> torch.Tensor:
    """Squares, of a matrix their mean over each row (as a column)."""
    squares = values.square()
    return squares.mean(-1, keepdim=True) if values.ndim > 1 else squares
