"""The registry of model families, by the hub's `model_type`."""

from __future__ import annotations

from tallow.errors import DataError
from tallow.models.families import (
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
FAMILIES: dict[str, Family] = {name: family for family in _FAMILIES for name in (family.name, *family.other_names)}


def find_family(name: str) -> Family:
    """The family of a `model_type`.

    Raises:
        DataError: It is not one of the supported ones.
    """
    if name not in FAMILIES:
        raise DataError(f"models of type {name!r} are not supported", f"supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


__all__ = ["FAMILIES", "Family", "TensorMap", "find_family"]
