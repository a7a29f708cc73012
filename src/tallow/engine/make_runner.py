"""Which runner computes a model, and in what precision."""

from __future__ import annotations

from typing import Literal

import torch

from tallow.console import say
from tallow.engine.native_runner import NativeRunner, Number, is_available
from tallow.engine.runner import Runner
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import UsageError
from tallow.kernels import prefers_fast, triton
from tallow.models.decoder import Decoder
from tallow.models.quantization import dequantize_modules, quantize_modules, quantized_bits, requantize_modules

Precision = Literal["auto", "fp32", "bf16", "q8", "q4"]
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
Device = Literal["auto", "cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BITS: dict[str, Literal[4, 8]] = {"q8": 8, "q4": 4}
GROUP_SIZE = 32


def make_runner(model: Decoder, precision: Precision, name: str = "the model", device: Device = "cpu") -> Runner:
    """Make a model ready to generate.

    Args:
        model: In evaluation mode; the runner may change or take its weights.
        precision: As `load` says.
        name: What to call the model in a note to the user.
        device: As `load` says.

    Raises:
        UsageError: There is no such device.
    """
    on_gpu = _chooses_gpu(device)
    bits, stored_bits = BITS.get(precision), quantized_bits(model)
    if stored_bits is not None and precision != "auto" and bits != stored_bits:
        say(f"the weights of {name} are stored in {stored_bits} bits; what that has lost does not come back")
        if bits is not None:
            requantize_modules(model, bits, GROUP_SIZE)
        else:
            dequantize_modules(model, DTYPES[precision])
    stored = {parameter.dtype for parameter in model.parameters()}
    in_bf16 = precision == "bf16" or (precision != "fp32" and stored == {torch.bfloat16})
    if (
        not on_gpu
        and prefers_fast()
        and stored <= {torch.float32, torch.bfloat16, torch.float16}
        and is_available(model)
    ):
        return _native(model, precision, in_bf16)
    if bits is not None and stored_bits is None:
        quantize_modules(model, bits, GROUP_SIZE)
    dtype = torch.bfloat16 if precision == "bf16" or (in_bf16 and (on_gpu or native_bf16())) else torch.float32
    return _on_gpu(model.to("cuda", dtype)) if on_gpu else TorchRunner(model.to(dtype))


def _native(model: Decoder, precision: Precision, in_bf16: bool) -> NativeRunner:
    quantized = quantized_bits(model) is not None
    plain: Number = "bfloat16" if in_bf16 else "float32"
    weights: Number = plain if quantized or precision not in BITS else "int8" if precision == "q8" else "int4"
    in_fp32 = precision == "fp32" or (not quantized and weights == "float32")
    return NativeRunner(model, weights, "float32" if in_fp32 else "bfloat16")


def _on_gpu(model: Decoder) -> Runner:
    if not triton.is_available():
        say("tallow runs without Triton, so more slowly: install triton")
    if not triton.is_available() or not prefers_fast():
        return TorchRunner(model)
    from tallow.engine.cuda_runner import CudaRunner  # imports Triton, for which nobody without a GPU should wait

    return CudaRunner(model)


def _chooses_gpu(device: Device) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no GPU here", "leave out the device, or install PyTorch's build for CUDA")
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def native_bf16() -> bool:
    """Whether this processor computes with bf16 in hardware; elsewhere PyTorch is faster in fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
