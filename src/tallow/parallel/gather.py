"""Numbers of every process, to every process."""

from __future__ import annotations

from collections.abc import Sequence

from tallow.parallel.world import World


def gather(world: World, values: Sequence[float]) -> list[list[float]]:
    """The values of each process, by rank, as float64; processes may have different numbers of them.

    All processes must call it.
    """
    sizes = [int(size) for size in world.sum(*[len(values) if rank == world.rank else 0 for rank in range(world.size)])]
    start = sum(sizes[: world.rank])
    own = [0.0] * sum(sizes)
    own[start : start + len(values)] = [float(value) for value in values]
    everything = iter(world.sum(*own) if own else [])
    return [[next(everything) for _ in range(size)] for size in sizes]
