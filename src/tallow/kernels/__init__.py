"""Operations that have fast versions, and the machine's limits.

Nothing outside this room knows which version of an operation ran.
"""

from tallow.kernels.blocks import BlockWeight, has_native_blocks, unpack_blocks
from tallow.kernels.dispatch import Operation, prefers_fast, single_thread, using
from tallow.kernels.paged_attention import QueryTiles, paged_attention
from tallow.kernels.probe import free_bytes, machine_bytes, matmul_peak, read_bandwidth
from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups, quantized_linear, unpack_codes
from tallow.kernels.sampling import Draw, choose_tokens

__all__ = [
    "BlockWeight",
    "Draw",
    "Operation",
    "QuantizedWeight",
    "QueryTiles",
    "choose_tokens",
    "dequantize",
    "free_bytes",
    "has_native_blocks",
    "machine_bytes",
    "matmul_peak",
    "paged_attention",
    "prefers_fast",
    "quantize_groups",
    "quantized_linear",
    "read_bandwidth",
    "single_thread",
    "unpack_blocks",
    "unpack_codes",
    "using",
]
