"""Settings of who does the work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tallow.recipe import Section

if TYPE_CHECKING:
    from tallow.data.work.engines import Engine


THREADS = 2
"""Of a process; a third of the work is Python's, which more of them would wait for."""


class ClusterConfig(Section):
    """Who does the work.

    Args:
        engine: Processes of this machine, or those of a Ray cluster (`ray` must be installed; where no cluster runs,
            one is started on this machine).
        processes: How many of this machine, this one among them; None: one for each two processors.
        threads: Parts that each of them works on at the same time; they share libraries and models. None: two, or one
            where `processes` leave no two processors to each.
        address: Of the Ray cluster, as `ray.init` takes it; None: the environment tells, or there is none.
    """

    incidental = frozenset(("engine", "processes", "threads", "address"))

    engine: Literal["local", "ray"] = "local"
    processes: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    address: str | None = None

    def make(self) -> Engine:
        """Who does the work, to be used as a context."""
        from tallow.data.work.engines import LocalEngine, RayEngine

        if self.engine == "ray":
            return RayEngine(self.address)
        processors = len(os.sched_getaffinity(0))
        threads = self.threads or min(THREADS, max(1, processors // (self.processes or 1)))
        return LocalEngine(self.processes or -(-processors // threads), threads)
