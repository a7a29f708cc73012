"""The skeletons by the configs that describe them, for who builds or saves a model of either kind."""

from __future__ import annotations

import torch

from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.encoder import Encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.initialization import Mup, Normal, initialize_normal
from tallow.models.mup import Scale, base_config, initialize_mup, rate_factors, scales

ModelConfig = DecoderConfig | EncoderConfig
Model = Decoder | Encoder


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


def learning_rate_factors(config: ModelConfig, initialization: Normal | Mup | None) -> dict[str, float]:
    """Factors on the learning rates of a new model's parameters, where they are not 1, by patterns of names.

    Raises:
        UsageError: The base shape does not fit `config`.
    """
    return rate_factors(_scales(config, initialization)) if isinstance(initialization, Mup) else {}


def _scales(config: ModelConfig, initialization: Mup) -> dict[str, Scale]:
    narrow = base_config(config, initialization.base)
    return scales(config, parameter_shapes(config), parameter_shapes(narrow))
