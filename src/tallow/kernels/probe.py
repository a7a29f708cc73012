"""What this machine can do at most, measured: so that every speed can be shown beside its physical limit."""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tallow.kernels import cpu

CGROUP = Path("/sys/fs/cgroup")
CGROUP_LIMIT = CGROUP / "memory.max"
# limit, use, and what of the use is file cache, which gives way
V2_FILES = ("memory.max", "memory.current", "active_file", "inactive_file")
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")
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


def free_bytes(*, mapped: bool = False) -> int:
    """Memory that this process can still take, that of the system's file caches included.

    Args:
        mapped: For pages of mapped files; a limit on a process's own data (`ulimit -d`) does not count them.
    """
    try:
        free = [_kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024]
    except OSError:  # not Linux
        return machine_bytes()
    free += [limit - used for limit, used in _cgroup_use()]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if not mapped and limit != resource.RLIM_INFINITY:
        free.append(limit - _kilobytes(Path("/proc/self/status"), "VmData") * 1024)
    return max(0, min(free))


def _kilobytes(file: Path, field: str) -> int:
    return int(file.read_text().partition(f"{field}:")[2].split()[0])


def _cgroup_use() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes, without file caches, of each control group with a limit that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, files = (CGROUP, V2_FILES) if controllers == "" else (CGROUP / "memory", V1_FILES)
        place = root / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit, used = (int((group / name).read_text()) for name in files[:2])
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit ("max"), or the root of all
                continue
            yield limit, used - sum(int(stat.get(key, 0)) for key in files[2:])
