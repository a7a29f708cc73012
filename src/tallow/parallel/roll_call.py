"""What each process is doing, so that when they wait for each other in vain it can be told for whom."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch.distributed import DistError, distributed_c10d
from torch.distributed.distributed_c10d import Store

from tallow.errors import WaitedInVain
from tallow.parallel.world import PATIENCE, World

TIMED_OUT = "Timed out"
BEAT_S = 0.5
WATCH_S = 5.0
"""How long a process that gives up watches whether the others still live; many beats, as the machine may be busy."""


class RollCall:
    """Notes, in the store that the processes have met at, what each is about to do, and that it lives.

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
            WaitedInVain: It has. The message names the operation and the processes that did not come.
        """
        if self.world.size == 1:
            yield
            return
        _set_timeout(timedelta(seconds=self.timeout_s))
        with self._beating():
            try:
                yield
            except RuntimeError as error:
                if TIMED_OUT not in str(error):
                    raise
                raise WaitedInVain(
                    f"process {self.world.rank} has waited {self.timeout_s:g} s for others in {self.doing}; "
                    f"{self._absent()}",
                    "see whether they hang, raise loop.parallel.timeout_s if they are only slow, then run the same "
                    "command again to go on from the newest checkpoint",
                ) from error
        _set_timeout(PATIENCE)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Within this block a thread counts up in the store; if this process is stopped, its count stands still."""
        done = threading.Event()
        store, key = _store(), _beat_key(self.world.rank)

        def beat() -> None:
            count = 0
            with suppress(DistError):  # the process that holds the store has gone, which the training notices too
                while not done.wait(BEAT_S):
                    count += 1
                    store.set(key, str(count))

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _absent(self) -> str:
        """Who is doing something else, or does not live, and in what."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        before = [_read(_beat_key(rank)) for rank in others]
        time.sleep(min(WATCH_S, self.timeout_s))
        absent: list[str] = []
        for rank, beat in zip(others, before, strict=True):
            note = _read(_key(rank))
            if note is None:
                absent.append(f"process {rank} has not begun to train")
                continue
            since, doing = json.loads(note)
            still = _read(_beat_key(rank)) == beat
            if still or doing != self.doing:
                sign = " and shows no sign of life" if still else ""
                absent.append(f"process {rank} has been in {doing} for {time.time() - since:.0f} s{sign}")
        return "; ".join(absent) or (
            "all others live and are in it too, so one of them computes for longer, or the network does not carry what "
            "they send"
        )


def _key(rank: int) -> str:
    return f"tallow/doing/{rank}"


def _beat_key(rank: int) -> str:
    return f"tallow/beat/{rank}"


def _read(key: str) -> bytes | None:
    """What a process has written; None: nothing yet."""
    return _store().get(key) if _store().check([key]) else None


def _store() -> Store:
    return distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage] (nothing public gives it)


def _set_timeout(timeout: timedelta) -> None:
    """Of all groups that there are."""
    for group in list(distributed_c10d._world.pg_map):  # pyright: ignore[reportPrivateUsage] (likewise)
        distributed_c10d._set_pg_timeout(timeout, group)  # pyright: ignore[reportPrivateUsage]
