"""How many threads compute: torch's and those of the C++ kernels, which are as many."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

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


class _Single:
    """The number of torch's threads is the process's: the first of the blocks lowers it, and the last restores it."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._threads = Lock(), 0, 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        import torch

        with self._lock:
            if self._blocks == 0:
                self._threads = torch.get_num_threads()
            self._blocks += 1
            torch.set_num_threads(1)
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                torch.set_num_threads(1 if self._blocks else self._threads)


single_thread = _Single()
"""Let torch compute with one thread in this block, also where several Python threads are in such blocks.

For short operations between those of the C++ decoder: the threads that torch takes for them go on spinning for
milliseconds after each, on the cores that the decoder's own threads need.
"""


@functools.cache
def _num_cores() -> int:
    """Cores that this process may run on; two hardware threads of one core count once."""
    try:
        cpus = os.sched_getaffinity(0)
        return len({tuple(Path(TOPOLOGY.format(cpu, name)).read_text() for name in _CORE) for cpu in cpus})
    except (AttributeError, OSError):  # not Linux
        return os.cpu_count() or 1


_CORE = ("physical_package_id", "core_id")
