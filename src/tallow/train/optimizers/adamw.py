"""AdamW (arXiv 1711.05101)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from tallow.train.optimizers.groups import decay_groups
from tallow.train.optimizers.method import Common, Method, Parameters


class AdamWMethod(Method):
    """AdamW (arXiv 1711.05101).

    Args:
        name: The optimizer.
    """

    moves_entries: ClassVar[bool] = True

    name: Literal["adamw"] = "adamw"

    def make(self, parameters: Parameters, common: Common) -> Sequence[Optimizer]:
        return make_adamw(parameters, common)


def make_adamw(parameters: Parameters, common: Common, betas: tuple[float, float] | None = None) -> list[Optimizer]:
    """AdamW in one pass over memory; none where there are no parameters.

    Args:
        betas: In place of the common ones: of parameters that another optimizer leaves to AdamW.
    """
    if not parameters:
        return []
    groups = decay_groups(parameters, common)
    return [_AdamW(groups, lr=common.learning_rate, betas=betas or common.betas, eps=common.epsilon, fused=True)]


class _AdamW(AdamW):
    """AdamW whose parameters may be spread over processes in different ways: a pass takes those spread alike."""

    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        self.param_groups = [{**group, "params": alike} for group in groups for alike in _spread_alike(group["params"])]
        super().step(closure)
        self.param_groups = groups


def _spread_alike(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    parts: dict[DeviceMesh | None, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        parts[parameter.device_mesh if isinstance(parameter, DTensor) else None].append(parameter)
    return parts.values()
