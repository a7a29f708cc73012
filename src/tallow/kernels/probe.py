"""What this machine can do at most, measured: so that every speed can be shown beside its physical limit."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tallow.kernels import cpu

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STREAM_BYTES = 256 << 20  # several times any last-level cache that two or eight cores get
_BUDGET_S = 0.3
_MATMUL_SIZE = 1024


@functools.cache
def read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second that can be read from memory, main memory by torch's present number of threads; measured once a
    process."""
    if device != "cpu":
        ones = torch.ones(8 * _STREAM_BYTES // 4, device=device)
        return ones.nbytes / _best_time(lambda: _wait(ones.sum()))
    words = torch.ones(_STREAM_BYTES // 8, dtype=torch.int64)
    extension = cpu.native()
    if extension is None:
        return _STREAM_BYTES / _best_time(lambda: words.sum())
    threads = torch.get_num_threads()
    return _STREAM_BYTES / _best_time(lambda: extension.read_memory(words.data_ptr(), words.numel(), threads))


@functools.cache
def matmul_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """Floating-point operations per second of a large square matrix product; measured once a process."""
    size = _MATMUL_SIZE if device == "cpu" else 8 * _MATMUL_SIZE
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
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


def machine_bytes(device: str = "cpu") -> int:
    """Memory of this machine, or of the container that the process runs in; of a GPU its own."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[1]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit ("max")
        return physical
