"""Random weights of a new model, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveFloat
from torch import nn

from tallow.models.config import DecoderConfig, Size
from tallow.models.encoder_config import EncoderConfig
from tallow.models.residual import WRITERS, silence
from tallow.recipe import Section

DEVIATION = 0.02


class Normal(Section):
    """Matrices normal, biases 0, gains of norms 1.

    `plain`: one deviation for all matrices (as BERT). `depth_scaled`: matrices that write to the residual stream have
    it divided by the square root of their number (GPT-2; arXiv 2005.14165, section 2.1). `layer_scaled`: all matrices
    of layer l, counted from 1, have it divided by the square root of l (DS-Init; arXiv 1908.11365, section 4).
    `zero_residual`: matrices that write to the residual stream start at 0, so that at first layers pass on what they
    get, as with ReZero (arXiv 2003.04887, section 3), but without factors that other programs do not know (as in
    Fixup; 1901.09321, section 3); where a norm stands between such a matrix and the stream, its gain is 0 instead.

    Args:
        name: The rule.
        deviation: Of matrices, before the rule divides it.
    """

    name: Literal["plain", "depth_scaled", "layer_scaled", "zero_residual"]
    deviation: PositiveFloat = DEVIATION


class BaseShape(Section):
    """Sizes of a narrow model; all else is as in the model itself.

    Args:
        hidden_size: Its hidden size.
        num_heads: Its query heads, which are as large as those of the model; None: as many fewer as it is narrower.
        num_kv_heads: Its heads of keys and values; None: likewise.
        intermediate_size: Inner size of its feed-forward; None: likewise.
    """

    hidden_size: Size
    num_heads: Size | None = None
    num_kv_heads: Size | None = None
    intermediate_size: Size | None = None


class Mup(Section):
    """The maximal update parametrization (arXiv 2203.03466): the best learning rate is that of a narrow model.

    At the base shape it is the usual initialization. In wider models the deviations and learning rates of matrices fall
    with their width.

    Args:
        name: The rule.
        deviation: Of matrices, at the base shape.
        base: The narrow model on which the learning rate was found.
    """

    name: Literal["mup"]
    deviation: PositiveFloat = DEVIATION
    base: BaseShape


def _by_name(value: object) -> object:
    """The name alone stands for an initialization with its defaults."""
    return {"name": value} if isinstance(value, str) else value


AnyInitialization = Annotated[Normal | Mup, Field(discriminator="name"), BeforeValidator(_by_name)]

Deviation = Callable[[str], float]
"""The deviation of a matrix, by its name."""


def usual(config: DecoderConfig | EncoderConfig, deviation: float = DEVIATION) -> Normal:
    """What models of this kind start with where nothing is said: decoders as GPT-2, encoders as BERT."""
    return Normal(name="plain" if isinstance(config, EncoderConfig) else "depth_scaled", deviation=deviation)


def initialize_normal(
    model: nn.Module, config: DecoderConfig | EncoderConfig, seed: int, rule: Normal | None = None
) -> None:
    """Random weights from `seed`, by the rule or else the usual one."""
    rule = rule or usual(config)
    draw_weights(model, seed, normal_deviation(rule, config.num_layers))
    if rule.name == "zero_residual":
        silence(model.named_parameters(), config)


def normal_deviation(rule: Normal, num_layers: int) -> Deviation:
    """What a rule says of each matrix."""

    def deviation(name: str) -> float:
        layer = re.match(r"layers\.(\d+)\.", name)
        if rule.name == "layer_scaled" and layer is not None:
            return rule.deviation / (int(layer[1]) + 1) ** 0.5
        if rule.name == "depth_scaled" and name.endswith(WRITERS):
            return rule.deviation / (2 * num_layers) ** 0.5
        return rule.deviation

    return deviation


def draw_weights(model: nn.Module, seed: int, deviation: Deviation) -> None:
    """Random matrices from `seed`, and biases of 0; vectors that are no biases (gains of norms) stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim >= 2:
                parameter.normal_(0.0, deviation(name), generator=generator)
