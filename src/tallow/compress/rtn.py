"""Round to nearest: each weight becomes the nearest code, with no look at data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups
from tallow.models.decoder import Decoder
from tallow.models.quantization import Target, plain_weight, replace_weight

ERROR_ROWS = 4096


def round_to_nearest(model: Decoder, targets: Sequence[Target]) -> Iterator[float]:
    """Quantize the targets one after the other, in place.

    Yields:
        The relative error of each, as it is done.
    """
    for target in targets:
        weight_OI = plain_weight(model, target.name)
        quantized = quantize_groups(weight_OI, target.bits, target.group_size)
        error = relative_error(weight_OI, quantized)
        replace_weight(model, target.name, quantized)
        del weight_OI  # else the old weight would live on while the next one is rounded
        yield error


def relative_error(weight_OI: Tensor, quantized: QuantizedWeight) -> float:
    """Frobenius norm of the rounding error over that of the weight; 0 for a weight of zeros."""
    error_squares = weight_squares = 0.0
    for start in range(
        0, quantized.out_features, ERROR_ROWS
    ):  # whole, the unpacked copies of a large table would not fit
        rows = slice(start, start + ERROR_ROWS)
        part = QuantizedWeight(quantized.codes[rows], quantized.scales[rows], quantized.bits, quantized.group_size)
        weight = weight_OI[rows].double()
        error_squares += float((weight - dequantize(part)).square().sum())
        weight_squares += float(weight.square().sum())
    return (error_squares / weight_squares) ** 0.5 if weight_squares else 0.0
