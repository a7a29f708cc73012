"""The registry of model families, by the hub's `model_type`."""

from __future__ import annotations

from typing import Any

from tallow.errors import DataError
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.families import (
    bert,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    minimax_m2,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    starcoder2,
)
from tallow.models.families.family import Family, TensorMap
from tallow.models.skeletons import ModelConfig

_FAMILIES = (
    gemma2.FAMILY,
    gemma3.FAMILY,
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    llama.FAMILY,
    minimax_m2.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    olmo2.FAMILY,
    olmoe.FAMILY,
    phi3.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    starcoder2.FAMILY,
)
FAMILIES: dict[str, Family[DecoderConfig]] = {
    name: family for family in _FAMILIES for name in (family.name, *family.other_names)
}
"""Those of decoders."""

ENCODERS: dict[str, Family[EncoderConfig]] = {family.name: family for family in (bert.FAMILY,)}


def find_family(name: str) -> Family[DecoderConfig]:
    """The family of decoders with this `model_type`.

    Raises:
        DataError: It is not one of the supported ones.
    """
    if name not in FAMILIES:
        raise DataError(f"models of type {name!r} are not supported", f"supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def find_encoder_family(name: str) -> Family[EncoderConfig]:
    """The family of encoders with this `model_type`.

    Raises:
        DataError: It is not one of the supported ones.
    """
    if name not in ENCODERS:
        raise DataError(f"encoders of type {name!r} are not supported", f"supported: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name]


def family_of(config: ModelConfig) -> Family[Any]:
    """The family that a model of this config is saved as.

    Raises:
        DataError: There is none of this name.
    """
    if isinstance(config, EncoderConfig):
        return find_encoder_family(config.family)
    return find_family(config.family)


__all__ = ["ENCODERS", "FAMILIES", "Family", "TensorMap", "family_of", "find_encoder_family", "find_family"]
