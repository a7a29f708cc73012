"""The processes that hold one model together: the leader, which has the engine, and followers that do as it says.

The leader starts its followers itself, on its own machine and reachable from there only; or `torchrun` has started
all of them, on several machines of a network that must be trusted. Between them go tensors only, by gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tallow.errors import CapacityError, TallowError, UsageError

START_TIMEOUT = timedelta(minutes=5)
STEP_TIMEOUT = timedelta(minutes=5)
"""Of one sum; a process that takes longer has hung."""
PATIENCE = timedelta(days=3650)
"""Of a follower that waits for work, and of whoever waits for the others to load their weights."""
LOOPBACK = "127.0.0.1"


class ProcessLost(TallowError):
    """A process of the group has ended, or no longer does what the others do: the group is of no use any more."""


class ProcessGroup:
    """This process and the others; process 0 is the leader. All must make the same calls in the same order.

    Args:
        url: Where they find each other, as `torch.distributed` has it; by itself: those that `torchrun` has started.
        rank: Of this process.
        size: How many there are.
        hostname: Where this one is reached; None: at the address of this machine's name.

    Raises:
        ProcessLost: Not all have come.
    """

    def __init__(self, url: str = "env://", rank: int = -1, size: int = -1, hostname: str | None = None) -> None:
        store, self.rank, self.size = next(rendezvous(url, rank, size))
        store.set_timeout(START_TIMEOUT)
        self._is_broken = False
        gloo: Any = dist.ProcessGroupGloo  # its type stub is not of this version
        options = gloo._Options()
        options._timeout = STEP_TIMEOUT
        make_default, make_device = gloo.create_default_device, gloo.create_device
        options._devices = [make_default() if hostname is None else make_device(hostname=hostname)]
        with self.in_step():
            self._gloo = gloo(PrefixStore("tallow", store), self.rank, self.size, options)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """What all processes do together; if it fails in this one, the others can't go on with it.

        Raises:
            ProcessLost: It has failed before, or another process has.
        """
        if self._is_broken:
            raise ProcessLost("the processes of this model no longer work together", "load it again")
        self._is_broken = True
        try:
            yield
        except RuntimeError as error:
            if "gloo" not in str(error) and "imed out" not in str(error):
                raise
            raise ProcessLost("another process of this model has ended", "what it said tells why") from error
        self._is_broken = False

    def sum_(self, x: Tensor, timeout: timedelta = STEP_TIMEOUT) -> Tensor:
        """Make a tensor the sum over all processes, in place where it is contiguous."""
        x = x.contiguous()
        self._gloo.allreduce(x, timeout=timeout).wait()
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all processes, each of the same shape."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._gloo.allgather([parts], [x.contiguous()]).wait()
        return parts

    def copy_from_leader(self, x: Tensor, timeout: timedelta = STEP_TIMEOUT) -> Tensor:
        """The leader's tensor, written into that of each process."""
        self._gloo.broadcast(x, 0, timeout=timeout).wait()
        return x

    def tell(self, numbers: Sequence[int]) -> None:
        """Say something to the followers, which `hear` it."""
        message = torch.tensor(numbers)
        self.copy_from_leader(torch.tensor([len(message)]))
        self.copy_from_leader(message)

    def hear(self) -> list[int]:
        """What the leader tells next."""
        [length] = self.copy_from_leader(torch.zeros(1, dtype=torch.int64), PATIENCE).tolist()
        return self.copy_from_leader(torch.empty(length, dtype=torch.int64)).tolist()


def start_group(size: int, settings: Mapping[str, str]) -> ProcessGroup:
    """Become the leader of a group.

    The threads of this process are shared out among all that run on this machine.

    Args:
        size: Its processes. If this one has been started by `torchrun`, those that it has started.
        settings: What `follower.follow` is told about the model by a leader that starts its followers.

    Raises:
        UsageError: `torchrun` has started another number of processes.
        CapacityError: A process cannot be started.
        ProcessLost: One has ended at once.
    """
    if "WORLD_SIZE" in os.environ:
        if int(os.environ["WORLD_SIZE"]) != size:
            raise UsageError(
                f"the model is to be spread over {size} processes, torchrun has started {os.environ['WORLD_SIZE']}",
                "leave out --tensor-parallel, or make them equal",
            )
        return ProcessGroup()
    threads = max(1, torch.get_num_threads() // size)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="tallow-") as directory:
        url = f"file://{directory}/store"
        messages = [{"url": url, "rank": rank, "size": size, **settings} for rank in range(1, size)]
        followers: list[subprocess.Popen[str]] = []
        try:
            followers += (_start_follower(message, threads) for message in messages)
            group = ProcessGroup(url, 0, size, LOOPBACK)
        except BaseException:
            _end(followers)
            raise
    weakref.finalize(group, _end, followers)
    return group


def _start_follower(message: Mapping[str, Any], threads: int) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tallow.engine.follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the leader alone
        )
    except OSError as error:
        raise CapacityError(f"no process can be started: {error.strerror}", "end some others") from error
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()  # and stays open: its end is the leader's
    return process


def _end(followers: Sequence[subprocess.Popen[str]]) -> None:
    for process in followers:
        process.kill()
        process.communicate()
