"""The optimizer, and what it does with a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from tallow.train.config import LoopConfig


def make_optimizer(parameters: Mapping[str, nn.Parameter], config: LoopConfig) -> Optimizer:
    """AdamW (arXiv 1711.05101) in one pass over memory; weights of matrices decay, biases and norms do not."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    return AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def average_and_clip(parameters: Iterable[nn.Parameter], count: float, max_norm: float) -> float:
    """Divide summed gradients by `count`, scale them down to `max_norm` if their norm is larger; the norm before that.

    Source of clipping by global norm: arXiv 1211.5063, section 3.2.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item() / count
    scale = min(1.0, max_norm / norm) / count if norm > 0 else 1.0
    for gradient in gradients:
        gradient.mul_(scale)
    return norm
