"""How many threads compute: torch's and those of the C++ kernels, which are as many."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"


def num_threads() -> int:
    """As many as torch uses, or would use if it were imported: OMP_NUM_THREADS, or one for each core."""
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else _num_cores()


def set_num_threads(threads: int) -> None:
    """Let this process, and those that it starts from now on, compute with so many."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute with one thread in this block.

    For short operations between those of the C++ decoder: the threads that torch takes for them go on spinning for
    milliseconds after each, on the cores that the decoder's own threads need.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _num_cores() -> int:
    """Cores that this process may run on; two hardware threads of one core count once."""
    try:
        cpus = os.sched_getaffinity(0)
        return len({tuple(Path(TOPOLOGY.format(cpu, name)).read_text() for name in _CORE) for cpu in cpus})
    except (AttributeError, OSError):  # not Linux
        return os.cpu_count() or 1


_CORE = ("physical_package_id", "core_id")
