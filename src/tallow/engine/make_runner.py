"""Which runner computes a model, and in what precision."""

from __future__ import annotations

from typing import Literal

import torch

from tallow.console import say
from tallow.engine.native_runner import NativeRunner, Number, is_available
from tallow.engine.runner import Runner
from tallow.engine.torch_runner import TorchRunner
from tallow.kernels import prefers_fast
from tallow.models.decoder import Decoder
from tallow.models.quantization import dequantize_modules, quantize_modules, quantized_bits, requantize_modules

Precision = Literal["auto", "fp32", "bf16", "q8", "q4"]
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BITS: dict[str, Literal[4, 8]] = {"q8": 8, "q4": 4}
GROUP_SIZE = 32


def make_runner(model: Decoder, precision: Precision, name: str = "the model") -> Runner:
    """Make a model ready to generate.

    Args:
        model: In evaluation mode; the runner may change or take its weights.
        precision: As `load` says.
        name: What to call the model in a note to the user.
    """
    bits, stored_bits = BITS.get(precision), quantized_bits(model)
    if stored_bits is not None and precision != "auto" and bits != stored_bits:
        say(f"the weights of {name} are stored in {stored_bits} bits; what that has lost does not come back")
        if bits is not None:
            requantize_modules(model, bits, GROUP_SIZE)
        else:
            dequantize_modules(model, DTYPES[precision])
    stored = {parameter.dtype for parameter in model.parameters()}
    in_bf16 = precision == "bf16" or (precision != "fp32" and stored == {torch.bfloat16})
    if prefers_fast() and stored <= {torch.float32, torch.bfloat16, torch.float16} and is_available(model):
        return _native(model, precision, in_bf16)
    if bits is not None and stored_bits is None:
        quantize_modules(model, bits, GROUP_SIZE)
    dtype = torch.bfloat16 if precision == "bf16" or (in_bf16 and native_bf16()) else torch.float32
    return TorchRunner(model.to(dtype))


def _native(model: Decoder, precision: Precision, in_bf16: bool) -> NativeRunner:
    quantized = quantized_bits(model) is not None
    plain: Number = "bfloat16" if in_bf16 else "float32"
    weights: Number = plain if quantized or precision not in BITS else "int8" if precision == "q8" else "int4"
    in_fp32 = precision == "fp32" or (not quantized and weights == "float32")
    return NativeRunner(model, weights, "float32" if in_fp32 else "bfloat16")


def native_bf16() -> bool:
    """Whether this processor computes with bf16 in hardware; elsewhere PyTorch is faster in fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
