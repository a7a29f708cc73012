"""The skeletons by the configs that describe them, for who builds or saves a model of either kind, and what each shows
of itself to who trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tallow.models.blocks.context import Context
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.encoder import Encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.initialization import Mup, Normal, initialize_normal
from tallow.models.mup import Scale, base_config, initialize_mup, rate_factors, scales

ModelConfig = DecoderConfig | EncoderConfig
Model = Decoder | Encoder


class Layered(Protocol):
    """What a model must show of itself to be spread over processes: that it consists of layers."""

    layers: nn.ModuleList

    def __call__(self, inputs_BT: Tensor, context: Context) -> Tensor:
        """Hidden states of token ids."""
        ...

    def begin(self, inputs_BT: Tensor, context: Context) -> Tensor:
        """What the first layer is given."""
        ...

    def through(self, x_BTD: Tensor, context: Context, layers: range) -> Tensor:
        """What some layers make of it."""
        ...

    def finish(self, x_BTD: Tensor) -> Tensor:
        """Hidden states, of what the last layer gives."""
        ...

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits of hidden states at any places."""
        ...


@runtime_checkable
class Balancing(Protocol):
    """A model that evens the use of its experts after each update, without a gradient."""

    def moved_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What it moves, by name."""
        ...

    def take_loads(self) -> Tensor:
        """Tokens that each expert of each layer has computed in training since this was last asked."""
        ...

    def move(self, loads: Tensor) -> None:
        """Move them, by the loads of all batches of an update on all processes."""
        ...


def build(config: ModelConfig) -> Model:
    """The model that `config` describes; its weights are PyTorch's defaults."""
    return Encoder(config) if isinstance(config, EncoderConfig) else Decoder(config)


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """The shapes of a model's parameters, by name; no memory is taken for them."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in build(config).named_parameters()}


def new_model(config: ModelConfig, seed: int, initialization: Normal | Mup | None = None) -> Model:
    """A model to be trained: random weights from `seed`.

    Args:
        initialization: Its rule; None: the usual one of the kind of model.

    Raises:
        UsageError: The base shape does not fit `config`.
    """
    model = build(config)
    if isinstance(initialization, Mup):
        initialize_mup(model, config, seed, initialization, _scales(config, initialization))
    else:
        initialize_normal(model, config, seed, initialization)
    return model


def with_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> Model:
    """The model that `config` describes, with these weights, which are not copied."""
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(weights, assign=True)
    return model


def learning_rate_factors(config: ModelConfig, initialization: Normal | Mup | None) -> dict[str, float]:
    """Factors on the learning rates of a new model's parameters, where they are not 1, by patterns of names.

    Raises:
        UsageError: The base shape does not fit `config`.
    """
    return rate_factors(_scales(config, initialization)) if isinstance(initialization, Mup) else {}


def _scales(config: ModelConfig, initialization: Mup) -> dict[str, Scale]:
    narrow = base_config(config, initialization.base)
    return scales(config, parameter_shapes(config), parameter_shapes(narrow))
