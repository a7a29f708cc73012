"""The maximal update parametrization (arXiv 2203.03466): what width does to each parameter of a model.

The rules are those of the paper's table 3 for Adam, which need no factor in the forward pass: what is saved is an
ordinary model of its family. Which dimensions grow is seen by comparing the parameters with those of the base shape, so
the rules hold for any skeleton:

- matrices between dimensions that grow: deviation divided by the square root of the growth of their inputs, learning
  rate divided by it;
- matrices to a fixed number of outputs that are read off (logits, the scores of experts): both divided by it;
- tables of vectors, biases and gains: as at the base shape.

Where the output matrix is the embedding it cannot do both. Then the last norm's gain (and bias) takes the division,
in its value and in its learning rate, which is the same thing to the letter (lemma J.1 and table 8: a factor on the
result of a matrix may be moved into what it multiplies).

Heads keep their size, so that the attention's scale, 1 / √d, does not change with the width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Size, nn

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.initialization import BaseShape, Mup, draw_weights, normal_deviation, usual
from tallow.recipe import parse_section

Shapes = Mapping[str, Size]
"""Of a model's parameters, by name."""

READ_OFF = ("lm_head.weight", "router.weight")


@dataclass(frozen=True)
class Scale:
    """What a parameter has in place of what it would have at the base shape.

    Args:
        value: Factor on its deviation, or on its value if it is a gain.
        rate: Factor on its learning rate.
    """

    value: float = 1.0
    rate: float = 1.0


def base_config(config: DecoderConfig | EncoderConfig, base: BaseShape) -> DecoderConfig | EncoderConfig:
    """The narrow model that `base` describes.

    Raises:
        UsageError: Its sizes do not come out whole, or its heads would be of another size.
    """
    sizes = {"hidden_size": base.hidden_size}
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size: int | None = getattr(config, name, None)
        if size is None:
            continue
        whole, rest = divmod(size * base.hidden_size, config.hidden_size)
        chosen = getattr(base, name)
        if chosen is None and (rest or not whole):
            raise UsageError(
                f"{name} {size} of hidden_size {config.hidden_size} does not come out whole at hidden_size "
                f"{base.hidden_size}",
                f"name initialization.base.{name}",
            )
        sizes[name] = chosen or whole
    narrow = parse_section(type(config), {**config.model_dump(), **sizes}, "initialization.base")
    if head_size(narrow) != head_size(config):
        raise UsageError(
            f"heads of {head_size(config)} entries would be heads of {head_size(narrow)} at the base shape, "
            "and learning rates carry over only between models with heads of one size",
            "choose initialization.base.num_heads in proportion to its hidden_size, or set model.head_dim",
        )
    return narrow


def head_size(config: DecoderConfig | EncoderConfig) -> int:
    """Entries of a head."""
    return config.head_size if isinstance(config, DecoderConfig) else config.hidden_size // config.num_heads


def scales(config: DecoderConfig | EncoderConfig, shapes: Shapes, base_shapes: Shapes) -> dict[str, Scale]:
    """What each parameter has in place of what it would have at the base shape, by name."""
    width = shapes["embed.weight"][1] / base_shapes["embed.weight"][1]
    enlarged = isinstance(config, DecoderConfig) and config.embedding_scale
    # the skeleton multiplies embeddings by the square root of the hidden size, which is to have no effect
    table = width**-0.5 if enlarged else 1.0
    read_by_embedding = _norm_before_tied_output(config)
    result: dict[str, Scale] = {}
    for name, shape in shapes.items():
        inputs = shape[-1] / base_shapes[name][-1]
        if name == "embed.weight":
            result[name] = Scale(table, table)
        elif read_by_embedding is not None and name.rpartition(".")[0] == read_by_embedding:
            result[name] = Scale(1 / (width * table), 1 / (width * table))
        elif len(shape) < 2 or name.startswith("embed_"):
            result[name] = Scale()
        else:
            result[name] = Scale(1 / inputs if name.endswith(READ_OFF) else inputs**-0.5, 1 / inputs)
    return result


def initialize_mup(
    model: nn.Module, config: DecoderConfig | EncoderConfig, seed: int, rule: Mup, scale: Mapping[str, Scale]
) -> None:
    """Random weights from `seed`: at the base shape those of the usual initialization."""
    deviation = normal_deviation(usual(config, rule.deviation), config.num_layers)
    draw_weights(model, seed, lambda name: deviation(name) * scale[name].value)
    offset = 1.0 if isinstance(config, DecoderConfig) and config.norm_offset else 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and name.endswith("weight"):
                parameter.add_(offset).mul_(scale[name].value).sub_(offset)


def rate_factors(scale: Mapping[str, Scale]) -> dict[str, float]:
    """Factors on learning rates that are not 1, by patterns of names: the layers' numbers are left open."""
    return {re.sub(r"\.\d+\.", ".*.", name): part.rate for name, part in scale.items() if part.rate != 1.0}


def _norm_before_tied_output(config: DecoderConfig | EncoderConfig) -> str | None:
    """The norm whose result the embedding turns into logits, if it does."""
    if isinstance(config, EncoderConfig):
        return "head.norm"
    return "norm" if config.tied_embeddings else None
