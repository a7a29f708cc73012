"""The processes as a grid, and the groups of those that do something together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tallow.errors import UsageError
from tallow.parallel.config import ParallelConfig
from tallow.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """All processes by what they share.

    Neighbours talk the most: those of one tensor group are next to each other, then those of one sequence, and so on
    outwards. Each group is made when it is first asked for, which all processes must do in the same order.

    Args:
        config: Into what they are divided.
        world: All of them.
        worlds: So many worlds of this size are divided alike, side by side; this is the one of this process.
        device_type: Of the tensors that they send each other, `cpu` or `cuda`.

    Raises:
        UsageError: So many processes cannot be divided like that.
    """

    config: ParallelConfig
    world: World
    worlds: int = 1
    device_type: str = "cpu"

    def __post_init__(self) -> None:
        config, size = self.config, self.world.size
        apart = config.pipeline * config.context * config.tensor
        if size % apart:
            named = f"pipeline × context × tensor is {config.pipeline} × {config.context} × {config.tensor}"
            raise UsageError(
                f"{size} process{'es' * (size > 1)} cannot be divided: {named}",
                f"start a multiple of {apart} processes with torchrun, or change loop.parallel",
            )
        for name, number, of in (
            ("replicas", config.replicas, size // apart),
            ("expert", config.expert, size // apart // config.replicas * config.context),
        ):
            if of % number:
                raise UsageError(f"loop.parallel.{name} is {number}, which does not divide {of}", "choose a divisor")

    @property
    def rows(self) -> int:
        """Processes, or groups of them, that have rows of their own."""
        config = self.config
        return self.world.size // (config.pipeline * config.context * config.tensor)

    @property
    def sharders(self) -> int:
        """Processes that divide among them what `zero` divides: those of a replica with other rows or places."""
        return self.rows // self.replicas * self.config.context

    @property
    def replicas(self) -> int:
        """Groups of processes that each hold everything."""
        return self.config.replicas if self.config.zero else self.rows

    @cached_property
    def grid(self) -> DeviceMesh:
        """Dimensions `pipeline`, `replicate`, `shard` and `tensor`; what is divided by several of them is a DTensor
        over several."""
        shape = (self.config.pipeline, self.replicas, self.sharders, self.config.tensor)
        return self._grid(shape, ("pipeline", "replicate", "shard", "tensor"))

    @property
    def place(self) -> dict[str, int]:
        """Where this process is among those of its stage of the pipeline, by the other dimensions of `grid`."""
        rest, tensor = divmod(self.world.rank, self.config.tensor)
        rest, shard = divmod(rest, self.sharders)
        return {"replicate": rest % self.replicas, "shard": shard, "tensor": tensor}

    @cached_property
    def expert_grid(self) -> DeviceMesh:
        """Dimensions `replicate`, `shard` and `expert`, besides those that experts are not divided by: processes with
        other tokens, neighbours of which share the experts."""
        config = self.config
        replicas = config.replicas if config.zero else 1
        holders = self.rows * config.context // replicas // config.expert
        names = ("pipeline", "replicate", "shard", "expert", "tensor")
        shape = (config.pipeline, replicas, holders, config.expert, config.tensor)
        return self._grid(shape, names)

    @cached_property
    def experts(self) -> World:
        """Those that share the experts."""
        config = self.config
        outer = config.pipeline * self.rows * config.context // config.expert
        return self._group(outer, config.expert, config.tensor, apart=True)

    @cached_property
    def holders(self) -> World:
        """Those that have other tokens, but the same experts: over them the gradients of experts are summed."""
        config = self.config
        size = self.rows * config.context // config.expert
        return self._group(config.pipeline, size, config.expert * config.tensor)

    @cached_property
    def data(self) -> World:
        """Those that share the rows."""
        config = self.config
        return self._group(config.pipeline, self.rows, config.context * config.tensor)

    @cached_property
    def tokens(self) -> World:
        """Those that have other tokens, whether of other rows or of other places: over them gradients are summed."""
        config = self.config
        return self._group(config.pipeline, self.rows * config.context, config.tensor)

    @cached_property
    def distinct(self) -> World:
        """Those that do different work: all but the others of this process's tensor group."""
        return self._group(1, self.world.size // self.config.tensor, self.config.tensor)

    @cached_property
    def context(self) -> World:
        """Those that share each sequence."""
        config = self.config
        return self._group(config.pipeline * self.rows, config.context, config.tensor, apart=True)

    @cached_property
    def pipeline(self) -> World:
        """Those that share the layers, in their order."""
        config = self.config
        return self._group(1, config.pipeline, self.world.size // config.pipeline)

    @cached_property
    def ends(self) -> World:
        """Those that have the first and the last layers; who has neither is alone."""
        place, size = self.pipeline.rank, self.pipeline.size
        if size == 2:
            return self.pipeline
        apart = self.world.size // size
        pairs = [
            [world * self.world.size + first + stage * apart for stage in (0, size - 1)]
            for world in range(self.worlds)
            for first in range(apart)
        ]
        group, _ = dist.new_subgroups_by_enumeration(pairs)
        return World(int(place > 0), 2, group) if isinstance(group, dist.ProcessGroup) else World(0, 1)

    def _group(self, outer: int, size: int, inner: int, *, apart: bool = False) -> World:
        """This process's of several groups.

        Args:
            apart: What it sends may come between what larger groups send, at other moments in each process; so it
                needs a group of its own even where it is all processes.
        """
        if size == 1:
            return World(0, 1)
        if size == self.world.size and not apart:
            return self.world
        if size == self.world.size and self.worlds == 1:
            group = dist.new_group()
            assert isinstance(group, dist.ProcessGroup)
            return World(self.world.rank, size, group)
        grid = self._grid((outer, size, inner), ("outer", "group", "inner"))
        return World(grid.get_local_rank("group"), size, grid.get_group("group"))

    def _grid(self, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
        """The processes of this world as a grid; all worlds make theirs at once."""
        if self.worlds == 1:
            return init_device_mesh(self.device_type, shape, mesh_dim_names=names)
        return init_device_mesh(self.device_type, (self.worlds, *shape), mesh_dim_names=("world", *names))[names]
