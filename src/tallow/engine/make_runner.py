"""Which runner computes a model, in what precision, and where its weights are kept."""

from __future__ import annotations

import sys
from typing import Literal

import torch

from tallow.console import say
from tallow.engine.native_runner import CacheNumber, Incompressible, NativeRunner, is_available
from tallow.engine.packed_file import incompressible_modules, packed_file
from tallow.engine.packing import GROUP_SIZE, INTEGERS, Number, plan_packing
from tallow.engine.process_group import ProcessGroup
from tallow.engine.runner import Runner
from tallow.engine.tensor_parallel import TensorParallelRunner, shard
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import UsageError
from tallow.kernels import cpu, free_bytes, prefers_fast, triton
from tallow.models.decoder import Decoder
from tallow.models.quantization import dequantize_modules, quantize_modules, quantized_bits, requantize_modules
from tallow.models.stored import LoadedModel, StoredModel

Precision = Literal["auto", "fp32", "bf16", "q8", "q4"]
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
CachePrecision = Literal["auto", "fp32", "bf16", "q8"]
CACHE_PRECISIONS = ("auto", "fp32", "bf16", "q8")
Placement = Literal["auto", "memory", "mapped"]
PLACEMENTS = ("auto", "memory", "mapped")
Device = Literal["auto", "cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
CACHE_NUMBERS: dict[str, CacheNumber] = {"fp32": "float32", "bf16": "bfloat16", "q8": "int8"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BITS: dict[str, Literal[4, 8]] = {"q8": 8, "q4": 4}
WEIGHTS_SHARE = 0.75
"""Weights may take this part of the memory that is free; the rest is for the cache and for what computes."""


def make_runner(
    model: StoredModel | Decoder,
    precision: Precision,
    weights: Placement = "memory",
    device: Device = "cpu",
    cache_precision: CachePrecision = "auto",
    group: ProcessGroup | None = None,
) -> Runner:
    """Make a model ready to generate.

    Args:
        model: In evaluation mode; the runner may change or take its weights. Of one that is stored, one weight is read
            at a time.
        precision: As `load` says.
        weights: As `load` says; only those of a stored model can be mapped.
        device: As `load` says.
        cache_precision: As `load` says.
        group: The processes that the model is spread over, each of which calls this; None: it is here as a whole.

    Raises:
        UsageError: The weights cannot be mapped, there is no such device, or the runner for it cannot hold keys and
            values in this precision; or the model cannot be spread over so many processes, or not on GPUs.
        DataError: The processes have loaded different models.
        CapacityError: The disk has no room for the file that is to be mapped.
    """
    on_gpu = _chooses_gpu(device)
    if on_gpu and group is not None:
        raise UsageError("models are spread over processes on CPUs only", "give --device cpu, or no --tensor-parallel")
    source = LoadedModel(model) if isinstance(model, Decoder) else model
    bits, stored_bits = BITS.get(precision), quantized_bits(source.model)
    if stored_bits is not None and precision != "auto" and bits != stored_bits:
        name = source.path or "the model"
        say(f"the weights of {name} are stored in {stored_bits} bits; what that has lost does not come back")
        decoder = source.load()
        if bits is not None:
            requantize_modules(decoder, bits, GROUP_SIZE)
        else:
            dequantize_modules(decoder, DTYPES[precision])
        source = LoadedModel(decoder, source.path)
    stored = {parameter.dtype for parameter in source.model.parameters()}
    in_bf16 = precision == "bf16" or (precision != "fp32" and stored == {torch.bfloat16})
    plain = stored <= {torch.float32, torch.bfloat16, torch.float16}
    if not on_gpu and group is None and prefers_fast() and plain and is_available(source.model):
        return _native(source, precision, in_bf16, weights, cache_precision)
    _refuse_mapping(weights)
    dtype = torch.bfloat16 if precision == "bf16" or (in_bf16 and (on_gpu or native_bf16())) else torch.float32
    _refuse_another_cache(cache_precision, dtype)
    decoder = source.load()
    if group is not None:
        shard(decoder, group)
    if bits is not None and stored_bits is None:
        quantize_modules(decoder, bits, GROUP_SIZE)
    if group is not None:
        return TensorParallelRunner(decoder.to(dtype), source.model.config, group)
    return _on_gpu(decoder.to("cuda", dtype)) if on_gpu else TorchRunner(decoder.to(dtype))


def _native(
    source: StoredModel, precision: Precision, in_bf16: bool, placement: Placement, cache_precision: CachePrecision
) -> NativeRunner:
    quantized = quantized_bits(source.model) is not None
    can_expand = cpu.operation_set() != "portable"  # which looks bytes up one by one: several times slower
    plain: Number = "float32" if not in_bf16 else "compressed_bfloat16" if can_expand else "bfloat16"
    weights: Number = plain if quantized or precision not in BITS else INTEGERS[BITS[precision]]
    in_fp32 = precision == "fp32" or (not quantized and weights == "float32")
    cache = CACHE_NUMBERS.get(cache_precision, "float32" if in_fp32 else "bfloat16")
    form = precision if quantized else weights
    known = incompressible_modules(source.path, form) if source.path is not None else []
    try:
        return _place(source, weights, cache, placement, form, known)
    except Incompressible as error:
        known = error.modules
    return _place(source, weights, cache, placement, form, known)


def _place(
    source: StoredModel, weights: Number, cache: CacheNumber, placement: Placement, form: str, incompressible: list[str]
) -> NativeRunner:
    """A runner whose weights are in memory or in a file.

    Raises:
        Incompressible: As `NativeRunner` does.
    """
    size = plan_packing(source.model, weights, incompressible).num_bytes
    if source.path is None or sys.platform != "linux":
        _refuse_mapping(placement)
        return NativeRunner(source, weights, cache, incompressible=incompressible)
    if placement == "memory" or (placement == "auto" and size <= WEIGHTS_SHARE * free_bytes()):
        return NativeRunner(source, weights, cache, incompressible=incompressible)
    with packed_file(source.path, form, size, incompressible) as file:
        resident_bytes = WEIGHTS_SHARE * free_bytes(mapped=True)
        runner = NativeRunner(
            source, weights, cache, file=file, resident_bytes=resident_bytes, incompressible=incompressible
        )
    _say_speed(runner, file.read_bandwidth())
    return runner


def _refuse_mapping(placement: Placement) -> None:
    if placement == "mapped":
        raise UsageError("weights can be mapped by the C++ decoder only, on Linux", "leave out --weights mapped")


def _refuse_another_cache(cache_precision: CachePrecision, dtype: torch.dtype) -> None:
    """PyTorch's runners hold keys and values as they compute them."""
    if cache_precision != "auto" and DTYPES.get(cache_precision) != dtype:
        computed = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"what computes here in {computed} has no cache in {cache_precision}, which only the C++ decoder has",
            "leave out --cache-precision, or use the C++ decoder, on a CPU",
        )


def _say_speed(runner: NativeRunner, disk: float) -> None:
    whole, streamed = runner.weight_bytes, runner.streamed_bytes
    if streamed:
        what, speed = f"{streamed / 1e9:.2f} of {whole / 1e9:.2f} GB for each token", f"{disk / streamed:.2g} tokens/s"
    else:
        what, speed = f"{whole / 1e9:.2f} GB once, as they are needed", f"{whole / disk:.2g} s"
    say(f"weights are read from the disk, {what}; at the {disk / 1e9:.2f} GB/s that it gives, about {speed}")


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
