"""More layers: copies that add nothing yet, or the whole stack of layers again."""

from __future__ import annotations

from typing import Literal

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.growth.settings import Growth
from tallow.models.residual import silence
from tallow.models.skeletons import Model, ModelConfig, build
from tallow.recipe import parse_section

LAYERS = "layers."


def deeper(config: ModelConfig, growth: Growth) -> ModelConfig:
    """The shape with as many layers as it is to have.

    Raises:
        UsageError: These are fewer, or new layers could not be such that they add nothing.
    """
    layers = growth.num_layers or config.num_layers
    if layers < config.num_layers:
        raise UsageError(
            f"a model of {config.num_layers} layers cannot grow to {layers}", "raise grow.num_layers, or leave it out"
        )
    if layers == config.num_layers:
        return config
    changes: dict[str, object] = {"num_layers": layers}
    if isinstance(config, DecoderConfig):
        if config.sliding_layers is not None:
            sources = layer_sources(config.num_layers, layers, growth.layers)
            changes["sliding_layers"] = tuple(config.sliding_layers[source] for source in sources)
    elif growth.layers == "identity":
        raise UsageError(
            "the layers of an encoder normalize what they pass on, so none can add nothing",
            "choose grow.layers: stack",
        )
    return parse_section(type(config), {**config.model_dump(), **changes}, "grow")


def layer_sources(before: int, after: int, layers: Literal["identity", "stack"]) -> list[int]:
    """The layer of the model as it was that each layer of the deeper one is a copy of.

    Layers that add nothing are spread evenly, each above the one that it copies.
    """
    return [index % before if layers == "stack" else index * before // after for index in range(after)]


def deepen(model: Model, config: ModelConfig, layers: Literal["identity", "stack"]) -> Model:
    """The model with the layers of `config`, all else being the same."""
    state = model.state_dict()
    grown = {name: value for name, value in state.items() if not name.startswith(LAYERS)}
    sources = layer_sources(model.config.num_layers, config.num_layers, layers)
    for index, source in enumerate(sources):
        beginning = f"{LAYERS}{source}."
        copies = {
            f"{LAYERS}{index}.{name.removeprefix(beginning)}": value.clone()
            for name, value in state.items()
            if name.startswith(beginning)
        }
        if layers == "identity" and source in sources[:index]:
            silence(copies.items(), config)
        grown |= copies
    deep = build(config)
    deep.load_state_dict(grown)
    return deep
