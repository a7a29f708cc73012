"""The optimizer, and what it does with a gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from tallow.parallel.shares import own_share
from tallow.train.config import LoopConfig
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.optimizers.groups import match_factors
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.optimizers.method import Common, Parameters
from tallow.train.optimizers.on_host import HostOptimizer


def make_optimizer(
    parameters: Parameters, config: LoopConfig, file: MappedFile | None = None, names: Collection[str] | None = None
) -> JointOptimizer:
    """The optimizer that the settings name.

    Args:
        file: Where that lies, or is to lie, which the settings want on disk.
        names: Of all parameters that are trained, where other processes have some of them; None: there are no others.

    Raises:
        UsageError: A factor on learning rates is of no parameter.
        CapacityError: The disk that the state goes to is full.
    """
    common = Common(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.betas or config.optimizer.own_betas,
        epsilon=config.epsilon,
        rate_factors=match_factors(config.learning_rate_factors, names or parameters),
    )
    place = config.offload.state
    elsewhere = {name: parameter for name, parameter in parameters.items() if parameter.device.type != "cpu"}
    if elsewhere and (place != "none" or len(elsewhere) < len(parameters)):
        at_home = parameters.keys() - elsewhere.keys()
        return HostOptimizer(parameters, config.optimizer, common, file, state_to_file=place == "disk", at_home=at_home)
    return JointOptimizer(parameters, config.optimizer, common, file, state_to_file=place == "disk")


def average_and_clip(parameters: Iterable[nn.Parameter], count: float, norm: float, max_norm: float) -> None:
    """Divide summed gradients by `count`, and scale them down to `max_norm` if the norm of that is larger.

    Source of clipping by global norm: arXiv 1211.5063, section 3.2.
    """
    scale = min(1.0, max_norm / norm) / count if norm > 0 else 1.0
    shares: dict[torch.device, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            shares[parameter.grad.device].append(own_share(parameter.grad))
    for found in shares.values():
        # in few calls, since to give a GPU each takes long; the name is public to those who write optimizers
        torch._foreach_mul_(found, scale)  # pyright: ignore[reportPrivateImportUsage]
