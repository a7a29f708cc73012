"""Rotary positions and their extensions beyond the trained length."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tallow.models.config import Rotary, RotaryScaling


class Rotation(NamedTuple):
    """Cosines and sines of each position, B 1 T r (r: the rotated size / 2), fp32."""

    cos_B1Tr: Tensor
    sin_B1Tr: Tensor


def rotation(rotary: Rotary, head_size: int, max_positions: int, positions_BT: Tensor) -> Rotation:
    """Angles of all positions for one kind of rotary embedding."""
    rotated = int(head_size * rotary.fraction)
    # only the dynamic rule depends on the sequence; the maximum is not computed for the others (it would sync a GPU)
    dynamic = rotary.scaling is not None and rotary.scaling.kind == "dynamic"
    length = int(positions_BT.max()) + 1 if dynamic else max_positions
    frequencies_r, magnitude = inverse_frequencies(rotary, rotated, max_positions, length, positions_BT.device)
    angles_B1Tr = positions_BT[:, None, :, None].float() * frequencies_r
    return Rotation(angles_B1Tr.cos() * magnitude, angles_B1Tr.sin() * magnitude)


def rotate(x_BHTd: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first `2 r` entries of each head, pairing entry i with entry i + r."""
    cos, sin = (table.to(x_BHTd.dtype) for table in rotation)
    half = cos.shape[-1]
    first, second, rest = x_BHTd[..., :half], x_BHTd[..., half : 2 * half], x_BHTd[..., 2 * half :]
    parts = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*parts, rest) if rest.shape[-1] else parts, dim=-1)


def inverse_frequencies(
    rotary: Rotary, rotated: int, max_positions: int, length: int, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Angular frequencies (radians a position) of the `rotated // 2` pairs, and the factor on cosines and sines.

    Args:
        rotated: Number of entries of a head that are rotated.
        max_positions: The model's maximum length, in tokens.
        length: Length of the present sequence; only the dynamic rule looks at it.
    """
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    plain = 1.0 / rotary.theta**exponents
    scaling = rotary.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        trained = scaling.original_max_positions or max_positions
        if length <= trained:
            return plain, 1.0
        stretch = scaling.factor * length / trained - (scaling.factor - 1)
        return 1.0 / (rotary.theta * stretch ** (rotated / (rotated - 2))) ** exponents, 1.0
    if scaling.kind == "yarn":
        return _yarn(rotary.theta, scaling, plain, rotated, max_positions), _yarn_magnitude(scaling)
    return _llama3(scaling, plain, max_positions), 1.0


def _yarn(theta: float, scaling: RotaryScaling, plain_r: Tensor, rotated: int, max_positions: int) -> Tensor:
    """YaRN's interpolation by parts (arXiv 2309.00071, section 3.2)."""
    trained = scaling.original_max_positions or max_positions

    def pair_with_rotations(rotations: float) -> float:
        return rotated * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with_rotations(scaling.beta_fast), pair_with_rotations(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    pairs = torch.arange(rotated // 2, dtype=torch.float32, device=plain_r.device)
    interpolated_share = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain_r / scaling.factor * interpolated_share + plain_r * (1 - interpolated_share)


def _yarn_magnitude(scaling: RotaryScaling) -> float:
    """YaRN's attention temperature, applied to cosines and sines (section 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


def _llama3(scaling: RotaryScaling, plain_r: Tensor, max_positions: int) -> Tensor:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, those between blended."""
    trained = scaling.original_max_positions or max_positions
    wavelengths = 2 * math.pi / plain_r
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept_share = ((trained / wavelengths - scaling.low_freq_factor) / span).clamp(0, 1)
    return plain_r / scaling.factor * (1 - kept_share) + plain_r * kept_share
