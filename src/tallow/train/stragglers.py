"""Processes that keep the others waiting."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence

from tallow.console import say
from tallow.parallel import World
from tallow.parallel.gather import gather

SLOW = 1.3
PATIENCE = 3


class Stragglers:
    """Names a process that is slower than the others for several records, once until it has been as fast again."""

    def __init__(self, world: World) -> None:
        hosts = gather(world, list(socket.gethostname().encode())) if world.size > 1 else [[]]
        self._hosts = [bytes(map(int, host)).decode(errors="replace") for host in hosts]
        self._slow_records = [0] * world.size

    def note(self, seconds: Sequence[float]) -> list[int]:
        """Take up what a step of each process has taken until it met the others, by rank; those that are named now."""
        ordinary = statistics.median_low(seconds)
        named = []
        for rank, own in enumerate(seconds):
            self._slow_records[rank] = self._slow_records[rank] + 1 if own > SLOW * ordinary else 0
            if self._slow_records[rank] == PATIENCE:
                named.append(rank)
                say(
                    f"process {rank} on {self._hosts[rank]} keeps the others waiting: "
                    f"{own:.3g} s a step, where {ordinary:.3g} s is usual"
                )
        return named
