"""Weights of 4, 6 and 8 bits in groups, and the linear layer that computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.kernels import triton
from tallow.kernels.dispatch import Operation

GROUP_MULTIPLE = 32
MOST_MULTIPLE = 15
"""Of a row's scale, for a group of 4-bit weights."""
_CODES = {4: torch.uint8, 6: torch.uint8, 8: torch.int8}
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The weight of a linear layer, O outputs by I inputs, as small integers with one scale a group of inputs.

    The value of an element is `scale · code` (8 bit), `scale · (code - 32)` (6 bit) or `scale · (code - 8)` (4 bit).

    Args:
        codes: 8 bit: int8, O × I. 4 bit: uint8, O × I/2; byte j of a group of g inputs holds input j of the group
            in its low half and input j + g/2 in its high half. With groups of 32 these are the codes of GGUF's
            Q8_0 and Q4_0, in their order. 6 bit: uint8, O × 3I/4; of the 3g/4 bytes of a group the first g/2 hold the
            lower four bits of its codes, as 4 bits do, and the other g/4 the upper two: byte j those of the inputs j,
            j + g/4, j + g/2 and j + 3g/4, from its lowest bits up.
        scales: float16, O × I/group_size.
        bits: 4, 6 or 8.
        group_size: Inputs that share a scale; a multiple of 32.

    Raises:
        DataError: The parts do not fit each other.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        fits = (
            codes.dtype == _CODES.get(self.bits)
            and scales.dtype == torch.float16
            and self.group_size > 0
            and self.group_size % GROUP_MULTIPLE == 0
            and codes.dim() == scales.dim() == 2
            and codes.shape[0] == scales.shape[0]
            and codes.shape[1] * 8 == scales.shape[1] * self.group_size * self.bits
            and codes.device == scales.device
            and codes.is_contiguous()
            and scales.is_contiguous()
        )
        if not fits:
            raise DataError(
                f"a {self.bits}-bit weight in groups of {self.group_size} cannot have {codes.dtype} codes of shape "
                f"{tuple(codes.shape)} and {scales.dtype} scales of shape {tuple(scales.shape)}",
                "restore the model from its source or compress it anew",
            )

    @cached_property
    def out_features(self) -> int:
        return self.scales.shape[0]

    @cached_property
    def in_features(self) -> int:
        return self.scales.shape[1] * self.group_size

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        return QuantizedWeight(self.codes.to(device), self.scales.to(device), self.bits, self.group_size)


def quantize_groups(weight_OI: Tensor, bits: int, group_size: int = GROUP_MULTIPLE) -> QuantizedWeight:
    """Round a weight to the nearest codes of 4, 6 or 8 bits, group by group along the inputs.

    8 bit: the scale is max|w| / 127. 6 bit: the scale maps the element of largest magnitude, sign included,
    to the code 0, which stands for -32 scales (so a scale may be negative, and only elements of the opposite
    sign beyond 31.5 scales are cut, to 31). The error of an element is at most half a scale (a whole one where it was
    cut), plus the rounding of the scale to float16. With groups of 32 the result of 8 bits is bit for bit GGUF's Q8_0.

    4 bit: as 6 bits with -8, but the scale is a whole multiple, 1 to 15 with either sign, of the row's own: products
    of several groups can then be summed as integers ("Integer Scale", Li et al., arXiv 2405.14597). With 15 times the
    row's scale the row's element of largest magnitude is -8, and it has 7 significant bits, so that float16 holds its
    multiples exactly. Of the multiple that a group's largest element wants, and its two neighbours, the group takes
    the one with the least squared error.

    Raises:
        UsageError: Bits or group size are not supported, or the inputs cannot be divided into such groups.
        DataError: The weight is not finite, or too large for float16 scales.
    """
    if bits not in _CODES:
        raise UsageError(f"weights cannot be quantized to {bits} bits", "choose 4, 6 or 8")
    if group_size <= 0 or group_size % GROUP_MULTIPLE:
        raise UsageError(f"group size {group_size} is not a multiple of {GROUP_MULTIPLE}", "choose 32, 64 or 128")
    if weight_OI.dim() != 2 or weight_OI.shape[1] % group_size:
        raise UsageError(
            f"a weight of shape {tuple(weight_OI.shape)} has no groups of {group_size} inputs",
            "choose a group size that divides the number of inputs",
        )
    rows = max(1, _BLOCK_ELEMENTS // max(1, weight_OI.shape[1]))  # bounds the memory of the float32 products below
    blocks = [
        _round_block(block.detach().float().unflatten(1, (-1, group_size)), bits)
        for block in weight_OI.split(rows, dim=0)
    ]
    scales = torch.cat([scales for _, scales in blocks])
    if not bool(scales.isfinite().all()):
        raise DataError("the weight has values that are not finite or are too large to quantize", "check the model")
    return QuantizedWeight(torch.cat([codes for codes, _ in blocks]), scales, bits, group_size)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for, O × I; computed in float32, then rounded to `dtype`."""
    multiples_OGg = unpack_codes(weight).unflatten(1, (-1, weight.group_size))
    return (multiples_OGg.float() * weight.scales.float().unsqueeze(2)).to(dtype).flatten(1)


def unpack_codes(weight: QuantizedWeight) -> Tensor:
    """What the scales are multiplied by, int8, O × I: the codes of 8 bits, or those of 4 and 6 bits less 8 and 32."""
    if weight.bits == 8:
        return weight.codes
    bytes_OGb, half = weight.codes.unflatten(1, (weight.scales.shape[1], -1)), weight.group_size // 2
    codes_OGg = _unfold(bytes_OGb[..., :half], 4)
    if weight.bits == 6:
        codes_OGg |= _unfold(bytes_OGb[..., half:], 2) << 4
    return (codes_OGg.to(torch.int8) - 2 ** (weight.bits - 1)).flatten(1)


@Operation
def quantized_linear(x_BI: Tensor, weight: QuantizedWeight, bias_O: Tensor | None = None) -> Tensor:
    """A linear layer with quantized weights and activations as they are.

    Contract: for float32 an output is within 1e-5 · Σ|x·w| of the exact sum. For bfloat16 the weights and
    the result may each be rounded to bfloat16 besides.

    Args:
        x_BI: Any number of leading dimensions, then I inputs.
        weight: O × I.
        bias_O: Of x's dtype.

    Returns:
        x's leading dimensions, then O outputs; x's dtype.
    """
    return F.linear(x_BI, dequantize(weight, x_BI.dtype), bias_O)


@quantized_linear.fast("cuda", torch.float32, torch.bfloat16, torch.float16)
def _few_rows_on_gpu(x_BI: Tensor, weight: QuantizedWeight, bias_O: Tensor | None = None) -> Tensor | None:
    if not triton.is_available() or (x_BI.requires_grad and torch.is_grad_enabled()):
        return None
    from tallow.kernels.triton.quantized_linear import quantized_linear as multiply

    return multiply(x_BI, weight.codes, weight.scales, bias_O, weight.bits)


def _round_block(weight_OGg: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes as a `QuantizedWeight` has them, and scales; each group by itself."""
    if bits == 8:
        scales = weight_OGg.abs().amax(dim=2, keepdim=True) / 127
        scaled = weight_OGg * _inverse(scales)
        rounded = scaled.trunc() + (2 * scaled.frac()).trunc()  # halves away from zero
        return rounded.to(torch.int8).flatten(1), scales.squeeze(2).half()
    largest_OG1 = weight_OGg.gather(2, weight_OGg.abs().argmax(dim=2, keepdim=True))
    if bits == 4:
        codes, scales = _best_multiples(weight_OGg, largest_OG1)
        return _fold(codes, 4).flatten(1), scales.squeeze(2).half()
    scales = largest_OG1 / -32
    codes = _nearest_codes(weight_OGg, scales, 6)
    packed = torch.cat([_fold(codes & 15, 4), _fold(codes >> 4, 2)], dim=2)
    return packed.flatten(1), scales.squeeze(2).half()


def _nearest_codes(weight_OGg: Tensor, scales_OG1: Tensor, bits: int) -> Tensor:
    zero = 2 ** (bits - 1)  # the code that stands for 0
    return (weight_OGg * _inverse(scales_OG1) + (zero + 0.5)).clamp(0, 2 * zero - 1).to(torch.uint8)


def _best_multiples(weight_OGg: Tensor, largest_OG1: Tensor) -> tuple[Tensor, Tensor]:
    """4-bit codes, and the groups' scales; C candidates of each group are tried."""
    sizes_OG1 = largest_OG1.abs() / 8
    sizes_O11 = sizes_OG1.amax(dim=1, keepdim=True)
    units_O11 = ((sizes_O11 / MOST_MULTIPLE).view(torch.int32) + 0x10000 & ~0x1FFFF).view(torch.float32)
    units_O11 = (units_O11 * 2**24).round() / 2**24  # next to zero float16 holds multiples of 2^-24
    units_O11 = torch.where(sizes_O11 == 0, 0.0, units_O11.clamp(min=2**-24))
    nearest_OG1 = torch.where(units_O11 > 0, (sizes_OG1 / units_O11 + 0.5).floor(), 1.0)
    steps_C111 = torch.tensor([0, -1, 1], device=weight_OGg.device)[:, None, None, None]
    multiples_COG1 = (nearest_OG1 + steps_C111).clamp(1, MOST_MULTIPLE)
    scales_COG1 = multiples_COG1 * torch.where(largest_OG1 > 0, -units_O11, units_O11)
    codes_COGg = _nearest_codes(weight_OGg, scales_COG1, 4)
    errors_COGg = (weight_OGg - scales_COG1 * (codes_COGg.float() - 8)).square()
    best_1OG1 = _sums_in_order(errors_COGg).argmin(dim=0, keepdim=True)
    codes_1OGg = codes_COGg.gather(0, best_1OG1.expand(1, *weight_OGg.shape))
    return codes_1OGg[0], scales_COG1.gather(0, best_1OG1)[0]


def _sums_in_order(values_COGg: Tensor) -> Tensor:
    """Sums of the last dimension, kept; in the order in which the C++ kernels add, since `sum` has none."""
    first, *others = values_COGg.split(8, dim=3)
    sums = sum(others, first)
    while sums.shape[3] > 1:
        lower, upper = sums.chunk(2, dim=3)
        sums = lower + upper
    return sums


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, 1 / scales)


def _fold(codes_OGg: Tensor, width: int) -> Tensor:
    """Codes of `width` bits into bytes: the first part of each group in the lowest bits, the next one above it."""
    folded_OGb, *others = codes_OGg.chunk(8 // width, dim=2)
    for part, codes_OGb in enumerate(others, start=1):
        folded_OGb = folded_OGb | codes_OGb << part * width
    return folded_OGb


def _unfold(bytes_OGb: Tensor, width: int) -> Tensor:
    """The inverse of `_fold`."""
    return torch.cat([bytes_OGb >> shift & 2**width - 1 for shift in range(0, 8, width)], dim=2)
