"""Processes that keep the others waiting."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Sequence

from tallow.console import say
from tallow.parallel import World

SLOW = 1.3
PATIENCE = 3


class Stragglers:
    """Names a process that is slower than the others for several records; once, until it was not for as many."""

    def __init__(self, world: World) -> None:
        self._hosts = world.gather_text(socket.gethostname())
        self._is_named = [False] * world.size
        self._other_records = [0] * world.size

    def note(self, seconds: Sequence[float]) -> list[int]:
        """Take up what a step of each process has taken until it met the others, by rank; those that are named now."""
        ordinary = statistics.median_low(seconds)
        named = []
        for rank, own in enumerate(seconds):
            is_slow = own > SLOW * ordinary
            self._other_records[rank] = self._other_records[rank] + 1 if is_slow != self._is_named[rank] else 0
            if self._other_records[rank] < PATIENCE:
                continue
            self._is_named[rank], self._other_records[rank] = is_slow, 0
            if is_slow:
                named.append(rank)
                say(
                    f"process {rank} on {self._hosts[rank]} keeps the others waiting: "
                    f"{own:.3g} s a step, where {ordinary:.3g} s is usual"
                )
        return named
