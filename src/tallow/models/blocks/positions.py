"""Rotary positions and their extensions beyond the trained length."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tallow.kernels import fused
from tallow.models.config import Rotary, RotaryScaling


class Rotation(NamedTuple):
    """Cosines and sines of each position, B 1 T r (r: the rotated size / 2), fp32."""

    cos_B1Tr: Tensor
    sin_B1Tr: Tensor


def make_rotation(rotary: Rotary, head_size: int, max_positions: int, positions_BT: Tensor) -> Rotation:
    """Angles of all positions for one kind of rotary embedding."""
    # some rules depend on the sequence; the maximum is not computed for the others (it would sync a GPU)
    depends = rotary.scaling is not None and rotary.scaling.depends_on_length
    length = int(positions_BT.max()) + 1 if depends else max_positions
    rotated = rotary.rotated_size(head_size)
    frequencies_r, magnitude = inverse_frequencies(rotary, rotated, max_positions, length, positions_BT.device)
    angles_B1Tr = positions_BT[:, None, :, None].float() * frequencies_r
    return Rotation(angles_B1Tr.cos() * magnitude, angles_B1Tr.sin() * magnitude)


def rotate(x_BHTd: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first `2 r` entries of each head, pairing entry i with entry i + r."""
    return fused.rotate(x_BHTd, *rotation)


def inverse_frequencies(
    rotary: Rotary, rotated: int, max_positions: int, length: int, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Angular frequencies (radians a position) of the `rotated // 2` pairs, and the factor on cosines and sines.

    Args:
        rotated: Number of entries of a head that are rotated.
        max_positions: The model's maximum length, in tokens.
        length: Length of the present sequence; only the dynamic rule and LongRoPE look at it.
    """
    exponents_r = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    plain_r = 1.0 / rotary.theta**exponents_r
    scaling = rotary.scaling
    if scaling is None:
        return plain_r, 1.0
    trained = scaling.original_max_positions or max_positions
    factor = scaling.stretch(max_positions)
    match scaling.kind:
        case "linear":
            return plain_r / factor, 1.0
        case "dynamic":
            stretch = factor * max(length, max_positions) / max_positions - (factor - 1)
            return 1.0 / (rotary.theta * stretch ** (rotated / (rotated - 2))) ** exponents_r, 1.0
        case "yarn":
            return _yarn(rotary.theta, scaling, factor, plain_r, trained), _yarn_magnitude(scaling, factor)
        case "llama3":
            return _llama3(scaling, factor, plain_r, trained), 1.0
        case "longrope":
            divisors = scaling.long_factors if length > trained else scaling.short_factors
            return plain_r / torch.tensor(divisors, device=device), _longrope_magnitude(scaling, factor, trained)


def _yarn(theta: float, scaling: RotaryScaling, factor: float, plain_r: Tensor, trained: int) -> Tensor:
    """YaRN's interpolation by parts (arXiv 2309.00071, section 3.2)."""
    rotated = 2 * len(plain_r)

    def pair_with_rotations(rotations: float) -> float:
        return rotated * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with_rotations(scaling.beta_fast), pair_with_rotations(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    pairs_r = torch.arange(len(plain_r), dtype=torch.float32, device=plain_r.device)
    interpolated_share_r = ((pairs_r - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain_r / factor * interpolated_share_r + plain_r * (1 - interpolated_share_r)


def _yarn_magnitude(scaling: RotaryScaling, factor: float) -> float:
    """YaRN's attention temperature, applied to cosines and sines (section 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _longrope_magnitude(scaling: RotaryScaling, factor: float, trained: int) -> float:
    """LongRoPE's attention temperature as Phi-3 has it (arXiv 2404.14219 and its released code)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0


def _llama3(scaling: RotaryScaling, factor: float, plain_r: Tensor, trained: int) -> Tensor:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, those between blended."""
    wavelengths_r = 2 * math.pi / plain_r
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept_share_r = ((trained / wavelengths_r - scaling.low_freq_factor) / span).clamp(0, 1)
    return plain_r / factor * (1 - kept_share_r) + plain_r * kept_share_r
