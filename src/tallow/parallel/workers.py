"""Workers: groups of processes that each train a model of their own for a while (local SGD, arXiv 1805.09767)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tallow.parallel.mesh import Mesh
from tallow.parallel.world import World


@dataclass(frozen=True)
class Workers:
    """All processes as `count` workers of neighbours, this one's being `number`.

    Args:
        everyone: All processes.
        count: Number of workers.
    """

    everyone: World
    count: int = 1

    @property
    def size(self) -> int:
        """Processes of a worker."""
        return self.everyone.size // self.count

    @property
    def number(self) -> int:
        """Which of the workers this process belongs to."""
        return self.everyone.rank // self.size

    @cached_property
    def own(self) -> World:
        """Those of this worker."""
        if self.count == 1:
            return self.everyone
        group = self._grid.get_group("place") if self.size > 1 else None
        return World(self.everyone.rank % self.size, self.size, group, has_main=self.number == 0)

    @cached_property
    def peers(self) -> World:
        """Those that do in the other workers what this process does in its own: they hold the same shares."""
        if self.count == 1:
            return World()
        return World(
            self.number, self.count, self._grid.get_group("worker"), has_main=self.everyone.rank % self.size == 0
        )

    @cached_property
    def _grid(self) -> DeviceMesh:
        return init_device_mesh("cpu", (self.count, self.size), mesh_dim_names=("worker", "place"))


def make_workers(mesh: Mesh) -> Workers:
    """Of all processes: one worker for all, or where updates are local one for each replica."""
    return Workers(mesh.world, mesh.replicas if mesh.config.local_steps > 1 else 1)
