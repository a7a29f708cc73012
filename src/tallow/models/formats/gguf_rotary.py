"""Rotary positions in GGUF: metadata, and tensors of divisors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from tallow.errors import DataError
from tallow.models.blocks.positions import inverse_frequencies
from tallow.models.config import DecoderConfig, Rotary, RotaryScaling
from tallow.models.formats.gguf_fields import Fields

ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (
    gguf.TENSOR_NAMES[tensor] + ".weight"
    for tensor in (
        gguf.MODEL_TENSOR.ROPE_FREQS,
        gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT,
        gguf.MODEL_TENSOR.ROPE_FACTORS_LONG,
    )
)
"""Tensors of divisors, one a rotary frequency: Llama 3's rule, and LongRoPE's two lists."""

ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)
LLAMA3_TRAINED_LENGTH = 8192


def rope_tensors(config: DecoderConfig) -> dict[str, Tensor]:
    """The tensors of rotary divisors that this model's scaling wants in the file."""
    scaling = config.rotary.scaling
    if config.positions != "rotary" or scaling is None:
        return {}
    if scaling.kind == "longrope":
        return {ROPE_SHORT: torch.tensor(scaling.short_factors), ROPE_LONG: torch.tensor(scaling.long_factors)}
    if scaling.kind == "llama3":
        return {ROPE_FREQS: _llama3_factors(config.rotary, config.head_size, config.max_positions)}
    return {}


def read_rotary(fields: Fields, head_size: int, rope: Mapping[str, Tensor]) -> Rotary:
    """The rotary embedding of the layers that see everything.

    Args:
        rope: Those of `ROPE_TENSORS` that the file has, fp32.

    Raises:
        DataError: The scaling is not supported, or its tensors do not fit.
    """
    rotated = fields.integer("rope.dimension_count", head_size)
    fraction = rotated / head_size
    if int(head_size * fraction) < rotated:  # the quotient was rounded down
        fraction = math.nextafter(fraction, 2.0)
    rotary = Rotary(theta=fields.number("rope.freq_base", 10000.0), fraction=fraction)
    if any(tensor.shape != (rotated // 2,) or not (tensor > 0).all() for tensor in rope.values()):
        raise DataError(f"{', '.join(rope)} do not fit {rotated} rotated entries", "convert the model again")
    scaling = _read_scaling(fields, rotary, head_size, rope)
    return rotary.model_copy(update={"scaling": scaling})


def _read_scaling(fields: Fields, rotary: Rotary, head_size: int, rope: Mapping[str, Tensor]) -> RotaryScaling | None:
    if ROPE_FREQS in rope:
        return _read_llama3(fields, rotary, head_size, rope[ROPE_FREQS])
    trained = fields.integer("rope.scaling.original_context_length", fields.integer("context_length"))
    if ROPE_SHORT in rope and ROPE_LONG in rope:
        return RotaryScaling(
            kind="longrope",
            original_max_positions=trained,
            short_factors=tuple(rope[ROPE_SHORT].tolist()),
            long_factors=tuple(rope[ROPE_LONG].tolist()),
            attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
        )
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    # files from before `rope.scaling.type` mean the linear rule
    kind = fields.text("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind == "none":
        return None
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=factor)
    if kind == "yarn":
        known: dict[str, Any] = {name: fields.number(key) for name, key in _YARN_FIELDS.items() if key in fields}
        return RotaryScaling(kind="yarn", factor=factor, original_max_positions=trained, **known)
    raise DataError(f"rotary scaling {kind!r} is not supported", "supported: linear, yarn, longrope and Llama 3's")


def _read_llama3(fields: Fields, rotary: Rotary, head_size: int, factors: Tensor) -> RotaryScaling:
    """Llama 3's rule with the constants of all its releases, if it gives the factors that the file holds."""
    scaling = RotaryScaling(
        kind="llama3",
        factor=round(float(factors.max()), 4),
        original_max_positions=fields.integer("rope.scaling.original_context_length", LLAMA3_TRAINED_LENGTH),
    )
    ours = _llama3_factors(rotary.model_copy(update={"scaling": scaling}), head_size, fields.integer("context_length"))
    if not torch.allclose(ours, factors, rtol=1e-3):
        raise DataError(
            f"the tensor {ROPE_FREQS} follows another rule than Llama 3's scaling", "this model is not supported"
        )
    return scaling


def _llama3_factors(rotary: Rotary, head_size: int, max_positions: int) -> Tensor:
    rotated = rotary.rotated_size(head_size)
    plain, _ = inverse_frequencies(rotary.model_copy(update={"scaling": None}), rotated, max_positions, 1)
    scaled, _ = inverse_frequencies(rotary, rotated, max_positions, 1)
    return plain / scaled


def write_rotary(config: DecoderConfig) -> dict[str, Any]:
    """The metadata, without the architecture's name; the tensors are `rope_tensors`."""
    rotary = complete_rotary(config.rotary, config)
    values: dict[str, Any] = {
        "rope.dimension_count": rotary.rotated_size(config.head_size),
        "rope.freq_base": rotary.theta,
    }
    scaling = rotary.scaling
    if scaling is None:
        return values
    if scaling.kind in ("linear", "yarn", "longrope"):
        values["rope.scaling.type"] = scaling.kind
    if scaling.kind in ("linear", "yarn"):  # llama.cpp would also stretch LongRoPE's frequencies by a factor
        values["rope.scaling.factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn", "longrope"):
        values["rope.scaling.original_context_length"] = scaling.original_max_positions
    if scaling.kind == "longrope":
        values["rope.scaling.attn_factor"] = scaling.attention_factor
    if scaling.kind == "yarn":
        given = scaling.model_dump(exclude_none=True)
        values |= {key: given[name] for name, key in _YARN_FIELDS.items() if name in given}
    return values


def complete_rotary(rotary: Rotary, config: DecoderConfig) -> Rotary:
    """The same rotary embedding with everything said that its scaling leaves to a default."""
    scaling = rotary.scaling
    if scaling is None:
        return rotary
    trained = scaling.original_max_positions or config.max_positions
    update: dict[str, Any] = {"factor": scaling.factor or config.max_positions / trained}
    update["original_max_positions"] = None if scaling.kind == "linear" else trained
    if scaling.kind == "longrope":
        rotated = rotary.rotated_size(config.head_size)
        magnitude = inverse_frequencies(rotary, rotated, config.max_positions, 1)[1]
        update |= {"factor": None, "attention_factor": magnitude}
    return rotary.model_copy(update={"scaling": scaling.model_copy(update=update)})


_YARN_FIELDS = {
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
}
