"""How fast this machine is at most, measured: so that every speed can be shown beside its physical limit."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tallow.kernels import cpu
from tallow.kernels.threads import num_threads

if TYPE_CHECKING:
    import torch

_STREAM_BYTES = 256 << 20  # several times any last-level cache that two or eight cores get
_BUDGET_S = 0.3
_MATMUL_SIZE = 1024


@functools.cache
def read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second that can be read from memory, main memory by all threads that compute; measured once."""
    if device != "cpu":
        import torch

        ones = torch.ones(8 * _STREAM_BYTES // 4, device=device)
        return ones.nbytes / _best_time(lambda: _wait(ones.sum()))
    words = np.ones(_STREAM_BYTES // 8, dtype=np.int64)
    extension = cpu.native()
    if extension is None:
        return _STREAM_BYTES / _best_time(lambda: words.sum())
    address, threads = words.ctypes.data, num_threads()
    return _STREAM_BYTES / _best_time(lambda: extension.read_memory(address, len(words), threads))


@functools.cache
def matmul_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations per second of a large square matrix product; measured once a process."""
    import torch

    size = _MATMUL_SIZE if device == "cpu" else 8 * _MATMUL_SIZE
    if dtype.itemsize == 1 and device == "cpu":  # a hundredfold slower: PyTorch only has a reference there
        size //= 8
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    if dtype.itemsize == 1:  # 8-bit floats are multiplied with their scales only
        one, multiply = torch.ones((), device=device), torch.ops.aten._scaled_mm
        return 2 * size**3 / _best_time(lambda: _wait(multiply(a, b.t(), one, one, out_dtype=torch.bfloat16)))
    return 2 * size**3 / _best_time(lambda: _wait(a @ b))


def _wait(result: torch.Tensor | None) -> None:
    """Accelerators compute behind the caller's back; one element read waits for them."""
    if result is not None and result.device.type != "cpu":
        result.flatten()[0].item()


def _best_time(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs after a first one; what disturbs a run only slows it."""
    work()
    best, end = float("inf"), time.perf_counter() + _BUDGET_S
    while (start := time.perf_counter()) < end or best == float("inf"):
        work()
        best = min(best, time.perf_counter() - start)
    return best
