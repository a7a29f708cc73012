"""What each process is doing, so that when they wait for each other in vain it can be told for whom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store

from tallow.errors import Interrupted
from tallow.parallel.world import PATIENCE, World

TIMED_OUT = "Timed out"


class RollCall:
    """Notes, in the store that the processes have met at, what each is about to do.

    Args:
        world: All processes.
        timeout_s: Seconds that one waits for the others in training.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self.world, self.timeout_s = world, timeout_s
        self.doing = "nothing"

    def note(self, doing: str) -> None:
        """Say what this process does from now on, such as `the gradients of step 3`."""
        self.doing = doing
        if self.world.size > 1:
            _store().set(_key(self.world.rank), json.dumps([time.time(), doing]))

    @contextmanager
    def limiting(self) -> Iterator[None]:
        """Within this block no process waits for longer than the limit.

        Raises:
            Interrupted: It has. The message names the operation and the processes that did not come.
        """
        if self.world.size == 1:
            yield
            return
        _set_timeout(timedelta(seconds=self.timeout_s))
        try:
            yield
        except RuntimeError as error:
            if TIMED_OUT not in str(error):
                raise
            raise Interrupted(
                f"process {self.world.rank} has waited {self.timeout_s:g} s for others in {self.doing}; "
                f"{self._absent()}",
                "see whether they hang, raise loop.parallel.timeout_s if they are only slow, then run the same command "
                "again to go on from the newest checkpoint",
            ) from error
        _set_timeout(PATIENCE)

    def _absent(self) -> str:
        """Who is doing something else, and what."""
        others = []
        for rank in range(self.world.size):
            if rank != self.world.rank and _store().check([_key(rank)]):
                since, doing = json.loads(_store().get(_key(rank)))
                if doing != self.doing:
                    others.append(f"process {rank} has been in {doing} for {time.time() - since:.0f} s")
        return "; ".join(others) or "all others are in it too, so the network does not carry what they send"


def _key(rank: int) -> str:
    return f"tallow/doing/{rank}"


def _store() -> Store:
    return distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage] (nothing public gives it)


def _set_timeout(timeout: timedelta) -> None:
    """Of all groups that there are."""
    for group in list(distributed_c10d._world.pg_map):  # pyright: ignore[reportPrivateUsage] (likewise)
        distributed_c10d._set_pg_timeout(timeout, group)  # pyright: ignore[reportPrivateUsage]
