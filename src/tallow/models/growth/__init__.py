"""A trained model made larger, to be trained further: wider, then deeper, then with experts."""

from __future__ import annotations

import torch

from tallow.models.families import family_of
from tallow.models.growth.depth import deepen, deeper
from tallow.models.growth.experts import upcycle, with_experts
from tallow.models.growth.settings import Growth
from tallow.models.growth.width import widen, wider
from tallow.models.skeletons import Model, ModelConfig

__all__ = ["Growth", "grow", "grown_config"]


def grown_config(config: ModelConfig, growth: Growth) -> ModelConfig:
    """The shape of a model of shape `config` once it has grown.

    Raises:
        UsageError: It cannot grow so, or its family could not say what it has become.
    """
    return _shapes(config, growth)[-1]


def grow(model: Model, growth: Growth, seed: int) -> Model:
    """The grown model, in fp32.

    Args:
        seed: Names what is drawn: how copies share what one did before, and the weights of routers.

    Raises:
        UsageError: As `grown_config`.
    """
    wide, deep, mixed = _shapes(model.config, growth)
    generator = torch.Generator().manual_seed(seed)
    if wide != model.config:
        model = widen(model, wide, generator)
    if deep != wide:
        model = deepen(model, deep, growth.layers)
    return upcycle(model, mixed, generator) if mixed != deep else model


def _shapes(config: ModelConfig, growth: Growth) -> tuple[ModelConfig, ModelConfig, ModelConfig]:
    """The shapes after each step."""
    wide = wider(config.model_copy(update={"family": growth.family or config.family}), growth)
    deep = deeper(wide, growth)
    mixed = with_experts(deep, growth)
    family_of(mixed).hub_config(mixed)
    return wide, deep, mixed
