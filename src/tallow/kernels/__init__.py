"""Operations that have fast versions, and the machine's limits.

Nothing outside this room knows which version of an operation ran.
"""

from tallow.kernels.dispatch import Operation, prefers_fast, using
from tallow.kernels.paged_attention import QueryTiles, paged_attention
from tallow.kernels.probe import machine_bytes, matmul_peak, read_bandwidth
from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups, quantized_linear

__all__ = [
    "Operation",
    "QuantizedWeight",
    "QueryTiles",
    "dequantize",
    "machine_bytes",
    "matmul_peak",
    "paged_attention",
    "prefers_fast",
    "quantize_groups",
    "quantized_linear",
    "read_bandwidth",
    "using",
]
