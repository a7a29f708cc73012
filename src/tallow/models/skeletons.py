"""The skeletons by the configs that describe them, for who builds or saves a model of either kind."""

from __future__ import annotations

from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.encoder import Encoder, initialize_encoder
from tallow.models.encoder_config import EncoderConfig

ModelConfig = DecoderConfig | EncoderConfig
Model = Decoder | Encoder


def build(config: ModelConfig) -> Model:
    """The model that `config` describes; its weights are PyTorch's defaults."""
    return Encoder(config) if isinstance(config, EncoderConfig) else Decoder(config)


def new_model(config: ModelConfig, seed: int) -> Model:
    """A model to be trained: random weights from `seed`."""
    model = build(config)
    if isinstance(model, Encoder):
        initialize_encoder(model, seed)
    else:
        initialize(model, seed)
    return model
