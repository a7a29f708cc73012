"""How a process begins: what that takes, and how it takes less."""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ARROW_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Environment of processes that prepare texts. Arrow's own allocator keeps what is freed: twice what is in use."""


def exempt_from_collection() -> None:
    """What exists by now stays until the process ends: garbage is not to be looked for in it again and again."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries complain at the end of what is never freed


@dataclass(frozen=True)
class Moment:
    """A moment in a process's life.

    Args:
        age_s: Seconds since its start, imports included.
        rss_bytes: The memory that it has.
    """

    age_s: float
    rss_bytes: int

    @classmethod
    def now(cls) -> Moment:
        started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
        return cls(age_s, int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


@contextmanager
def uncollected() -> Iterator[None]:
    """Within this block no garbage is collected: for work that makes many objects which stay.

    Importing torch makes some hundred thousand, and the collector would look through all of them several times.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
