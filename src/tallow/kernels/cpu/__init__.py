"""The C++ kernels: what tensors they are given is checked here, because only addresses go on."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from tallow.console import say
from tallow.errors import UsageError

MAX_ROWS = 8
BEST_FIRST = ("avx512_bf16", "avx512", "avx2", "portable")


@functools.cache
def native() -> ModuleType | None:
    """The C++ extension; None where it could not be built, which the first call says on standard error."""
    try:
        return importlib.import_module("tallow.kernels.cpu._native")
    except ImportError as error:
        say(f"tallow runs without its C++ kernels, so more slowly ({error}); install a C++ compiler, then tallow anew")
        return None


@functools.cache
def instruction_set() -> int:
    """The best instruction set for `quantized_linear` on this processor, or of those up to what TALLOW_CPU names.

    Raises:
        UsageError: TALLOW_CPU names one that this processor or this build does not have.
    """
    extension = native()
    assert extension is not None
    names = extension.instruction_sets()
    return names.index(_choose(names, extension))


@functools.cache
def operation_set() -> str:
    """As `instruction_set`, for the operations of the decoder.

    Raises:
        UsageError: TALLOW_CPU names one that this processor or this build does not have.
    """
    extension = native()
    assert extension is not None
    return _choose(extension.operation_sets(), extension)


def _choose(names: Sequence[str], extension: ModuleType) -> str:
    known = [name for name in BEST_FIRST if name in (*extension.instruction_sets(), *extension.operation_sets())]
    wanted = os.environ.get("TALLOW_CPU", known[0])
    if wanted not in known:
        raise UsageError(f"TALLOW_CPU={wanted} cannot run here", f"choose one of {', '.join(known)}")
    return next(name for name in known[known.index(wanted) :] if name in names)


def quantized_linear(
    x_BI: Tensor, codes: Tensor, scales: Tensor, bias_O: Tensor | None, bits: int, outputs: int, inputs: int
) -> Tensor | None:
    """`tallow.kernels.quantized_linear` for 1 to 8 rows of float32 or bfloat16.

    Codes and scales are those of a `QuantizedWeight` of this shape, which has checked that they fit.

    Returns:
        None if there is no extension, or for tensors that it does not take; the reference then computes or complains.
    """
    extension, dtype = native(), x_BI.dtype
    *leading, width = x_BI.shape
    rows = math.prod(leading)
    if extension is None or width != inputs or not 1 <= rows <= MAX_ROWS or not codes.is_cpu:
        return None
    if bias_O is not None and (bias_O.dtype != dtype or bias_O.shape != (outputs,) or not bias_O.is_cpu):
        return None
    x_BI = x_BI.contiguous()
    bias_O = bias_O.contiguous() if bias_O is not None else None
    out_BO = x_BI.new_empty((*leading, outputs))
    extension.quantized_linear(
        instruction_set(),
        bits,
        dtype == torch.bfloat16,
        x_BI.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
        bias_O.data_ptr() if bias_O is not None else 0,
        out_BO.data_ptr(),
        rows,
        outputs,
        inputs,
        inputs // scales.shape[1],
        torch.get_num_threads(),
    )
    return out_BO
