"""Settings of who does the work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tallow.recipe import Section

if TYPE_CHECKING:
    from tallow.data.work.engines import Engine


class ClusterConfig(Section):
    """Who does the work.

    Args:
        engine: Processes of this machine, or those of a Ray cluster (`ray` must be installed; where no cluster runs,
            one is started on this machine).
        processes: How many on this machine; None: one a processor.
        address: Of the Ray cluster, as `ray.init` takes it; None: the environment tells, or there is none.
    """

    incidental = frozenset(("engine", "processes", "address"))

    engine: Literal["local", "ray"] = "local"
    processes: int | None = Field(default=None, ge=1)
    address: str | None = None

    def make(self) -> Engine:
        """Who does the work, to be used as a context."""
        from tallow.data.work.engines import LocalEngine, RayEngine

        if self.engine == "ray":
            return RayEngine(self.address)
        return LocalEngine(self.processes or len(os.sched_getaffinity(0)))
