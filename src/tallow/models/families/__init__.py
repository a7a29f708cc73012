"""The registry of model families, by the hub's `model_type`."""

from __future__ import annotations

from tallow.errors import DataError
from tallow.models.families import llama
from tallow.models.families.family import Family, TensorMap

FAMILIES: dict[str, Family] = {family.name: family for family in (llama.FAMILY,)}


def find_family(name: str) -> Family:
    """The family of a `model_type`.

    Raises:
        DataError: It is not one of the supported ones.
    """
    if name not in FAMILIES:
        raise DataError(f"models of type {name!r} are not supported", f"supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


__all__ = ["FAMILIES", "Family", "TensorMap", "find_family"]
