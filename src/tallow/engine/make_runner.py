"""Which runner computes a model, in what precision, and where its weights are kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tallow.console import say
from tallow.engine.choices import CachePrecision, Device, Placement, Precision, chooses_gpu
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_model import GROUP_SIZE, Memory, Number, Plan
from tallow.engine.packed_store import Place, find_packed
from tallow.engine.packing import INTEGERS, can_pack, pack
from tallow.engine.process_group import ProcessGroup
from tallow.engine.run_packed import CACHE_NUMBERS, fits_memory, is_worth_keeping, load_packed, run_packed
from tallow.engine.runner import Runner
from tallow.engine.tensor_parallel import TensorParallelRunner, shard
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.kernels import cpu, triton
from tallow.kernels.blocks import Q4_0, BlockWeight
from tallow.kernels.dispatch import prefers_fast
from tallow.models.decoder import Decoder
from tallow.models.equalization import EqualizedModel, calibration_tokens
from tallow.models.formats import has_tokenizer, load_tokenizer
from tallow.models.quantization import dequantize_modules, quantize_modules, quantized_bits, requantize_modules
from tallow.models.stored import LoadedModel, StoredModel
from tallow.tokenizer.tokenizer import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BITS: dict[str, Literal[4, 8]] = {"q8": 8, "q4": 4}


def make_runner(
    model: StoredModel | Decoder,
    precision: Precision,
    weights: Placement = "memory",
    device: Device = "cpu",
    cache_precision: CachePrecision = "auto",
    group: ProcessGroup | None = None,
    tokenizer: Tokenizer | None = None,
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
        tokenizer: That of a stored model, to be kept with what is packed; None: it is loaded if it is needed.

    Raises:
        UsageError: The weights cannot be mapped, there is no such device, or the runner for it cannot hold keys and
            values in this precision; or the model cannot be spread over so many processes, or not on GPUs.
        DataError: The processes have loaded different models.
        CapacityError: The disk has no room for the file that is to be mapped.
    """
    on_gpu = chooses_gpu(device)
    if on_gpu and group is not None:
        raise UsageError("models are spread over processes on CPUs only", "give --device cpu, or no --tensor-parallel")
    source = LoadedModel(model) if isinstance(model, Decoder) else model
    packed = load_packed(source.path, precision, device) if source.path is not None and group is None else None
    if packed is not None:
        return run_packed(packed, weights, cache_precision)
    bits, stored_bits = BITS.get(precision), quantized_bits(source.model)
    if stored_bits is not None and precision != "auto" and bits != stored_bits:
        name = source.path or "the model"
        say(f"the weights of {name} are stored in {stored_bits} bits; what that has lost does not come back")
        decoder = source.load()
        if bits is not None:
            requantize_modules(decoder, bits, GROUP_SIZE)
        else:
            dequantize_modules(decoder, DTYPES[precision])
        source = LoadedModel(decoder, source)
    load_its_tokenizer = (lambda: tokenizer) if tokenizer is not None else _tokenizer_loader(source.path)
    if bits == 4 and stored_bits is None:
        source = equalize(source, load_its_tokenizer)
    stored = {parameter.dtype for parameter in source.model.parameters()}
    in_bf16 = precision == "bf16" or (precision != "fp32" and stored == {torch.bfloat16})
    plain = stored <= {torch.float32, torch.bfloat16, torch.float16}
    if not on_gpu and group is None and prefers_fast() and plain and can_pack(source.model):
        return _native(source, precision, in_bf16, weights, cache_precision, load_its_tokenizer)
    _refuse_mapping(weights)
    dtype = torch.bfloat16 if precision == "bf16" or (in_bf16 and (on_gpu or native_bf16())) else torch.float32
    _refuse_another_cache(cache_precision, dtype)
    decoder = source.load()
    if group is not None:
        shard(decoder, group)
    if bits is not None and stored_bits is None:
        quantize_modules(decoder, bits, GROUP_SIZE)
    if group is not None:
        runner = TensorParallelRunner(decoder.to(dtype), source.model.config, group)
    else:
        runner = _on_gpu(decoder.to("cuda", dtype)) if on_gpu else TorchRunner(decoder.to(dtype))
    if isinstance(source, EqualizedModel):
        runner.factors = source.factors
    return runner


def _native(
    source: StoredModel,
    precision: Precision,
    in_bf16: bool,
    placement: Placement,
    cache_precision: CachePrecision,
    load_its_tokenizer: Callable[[], Tokenizer | None],
) -> NativeRunner:
    quantized = quantized_bits(source.model) is not None
    can_expand = cpu.operation_set() != "portable"  # which looks bytes up one by one: several times slower
    plain: Number = "float32" if not in_bf16 else "compressed_bfloat16" if can_expand else "bfloat16"
    weights: Number = plain if quantized or precision not in BITS else INTEGERS[BITS[precision]]
    in_fp32 = precision == "fp32" or (not quantized and weights == "float32")
    cache = CACHE_NUMBERS.get(cache_precision)
    path = source.path
    if path is None or sys.platform != "linux":
        _refuse_mapping(placement)
        return NativeRunner(pack(source, weights, in_fp32=in_fp32), cache)
    place = Place(path, precision, source.files, load_its_tokenizer)

    def allocate(plan: Plan) -> AbstractContextManager[Memory]:
        if placement == "mapped" or (placement == "auto" and not fits_memory(plan)):
            return place.memory(plan)
        return nullcontext(Memory.of_its_own(plan.num_bytes))

    packed = pack(source, weights, in_fp32=in_fp32, allocate=allocate)
    if packed.memory.descriptor is None:
        if is_worth_keeping(packed.plan):
            place.keep(packed)
        return NativeRunner(packed, cache)
    del packed  # its pages are the file's
    found = find_packed(path, precision)
    if found is None:
        raise DataError(f"{path} has changed while its weights were packed", "start anew once it is whole")
    return run_packed(found, placement, cache_precision)


def equalize(source: StoredModel, load_tokenizer: Callable[[], Tokenizer | None]) -> StoredModel:
    """The model as it is rounded to 4 bits: with channels made alike, where its weights are not codes of 4 bits yet."""
    linear = [name for name, module in source.model.layers[0].named_modules() if isinstance(module, nn.Linear)]
    weights = (source.read(f"layers.0.{name}.weight") for name in linear)
    has_codes = any(isinstance(weight, BlockWeight) and weight.kind == Q4_0 for weight in weights)
    if has_codes or source.model.config.num_experts:
        return source
    tokens_T = calibration_tokens(source.model.config, load_tokenizer())
    return EqualizedModel(source, tokens_T, torch.bfloat16 if native_bf16() else torch.float32)


def _tokenizer_loader(path: Path | None) -> Callable[[], Tokenizer | None]:
    return lambda: load_tokenizer(path) if path is not None and has_tokenizer(path) else None


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


def _on_gpu(model: Decoder) -> TorchRunner:
    if not triton.is_available():
        say("tallow runs without Triton, so more slowly: install triton")
    if (
        not triton.is_available() or not prefers_fast() or model.config.num_experts
    ):  # no graph holds a choice of experts
        return TorchRunner(model)
    from tallow.engine.cuda_runner import CudaRunner  # imports Triton, for which nobody without a GPU should wait

    return CudaRunner(model)


def native_bf16() -> bool:
    """Whether this processor computes with bf16 in hardware; elsewhere PyTorch is faster in fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
