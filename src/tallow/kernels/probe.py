"""What this machine can do at most, measured: so that every speed can be shown beside its physical limit."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tallow.kernels import cpu

_STREAM_BYTES = 256 << 20  # several times any last-level cache that two or eight cores get
_BUDGET_S = 0.3
_MATMUL_SIZE = 1024
# bfloat16 costs precision, so it must earn it.
_MIN_SPEEDUP = 1.1


@functools.cache
def read_bandwidth() -> float:
    """Bytes per second that torch's present number of threads can read from main memory; measured once a process."""
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


@functools.cache
def preferred_training_dtype(device: str = "cpu") -> torch.dtype:
    """The faster of bfloat16 and float32 for training here: a feed-forward block, forward and backward, is timed.

    bfloat16 must be at least a tenth faster. Measured once a process; a run that must be repeatable records
    the answer.
    """
    float32_s, bfloat16_s = (_training_time(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if bfloat16_s * _MIN_SPEEDUP < float32_s else torch.float32


def _training_time(dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator(device).manual_seed(0)
    tokens, hidden_size, intermediate_size = (512, 512, 1408) if device == "cpu" else (8192, 2048, 5632)

    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, device=device) * shape[-1] ** -0.5
        return values.to(dtype).requires_grad_()

    x_TD = random(tokens, hidden_size)
    gate_FD, up_FD = random(intermediate_size, hidden_size), random(intermediate_size, hidden_size)
    down_DF = random(hidden_size, intermediate_size)

    def step() -> None:
        normed_TD = F.rms_norm(x_TD, (hidden_size,))
        F.linear(F.silu(F.linear(normed_TD, gate_FD)) * F.linear(normed_TD, up_FD), down_DF).sum().backward()
        _wait(down_DF.grad)

    return _best_time(step)


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
