"""Processes that train together: who this one is among them, and sums over all of them.

Between processes go tensors only, never pickled objects.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tallow.errors import Interrupted, UsageError

BUCKET_BYTES = 25 << 20
# the others wait while the main process does alone what cannot be shared; who loses a process is told at once
PATIENCE = timedelta(days=30)
JOIN_PATIENCE = timedelta(minutes=10)
ANSWER_PATIENCE = timedelta(milliseconds=200)
Item = TypeVar("Item")
AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@dataclass(frozen=True)
class Position:
    """Which of several this one is, counted from 0."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This one's part of the work; together they do each item once."""
        return items[self.rank :: self.size]


@dataclass(frozen=True)
class World(Position):
    """This process among `size` ones; alone, every sum is what this process has.

    Args:
        group: These processes, where they are not all that there are.
        has_main: Whether the main process is one of them.
    """

    group: dist.ProcessGroup | None = None
    has_main: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and talks to the user."""
        return self.rank == 0 and self.has_main

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, in float64. All processes must call it."""
        return self._combine(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """The largest of each value, in float64. All processes must call it."""
        return self._combine(values, dist.ReduceOp.MAX)

    def gather(self, *values: float) -> list[list[float]]:
        """The values of each process, by rank, in float64; processes may have different numbers of them.

        All processes must call it.
        """
        sizes = [int(size) for size in self.sum(*[len(values) * (rank == self.rank) for rank in range(self.size)])]
        start = sum(sizes[: self.rank])
        own = [0.0] * sum(sizes)
        own[start : start + len(values)] = [float(value) for value in values]
        everything = iter(self.sum(*own) if own else [])
        return [[next(everything) for _ in range(size)] for size in sizes]

    def gather_text(self, text: str) -> list[str]:
        """The text of each process, by rank. All processes must call it."""
        return [bytes(map(int, values)).decode() for values in self.gather(*text.encode())]

    def agree(self, claim: bool) -> bool:
        """What the first process claims. All processes must call it."""
        return self.sum(self.rank == 0 and claim)[0] > 0

    def require_alike(self, what: str, value: str) -> None:
        """See to it that all processes have been given the same; all must call it.

        Args:
            what: Its name, in the plural.
            value: What it is here.

        Raises:
            UsageError: They have not; on all processes.
        """
        if self.size == 1:
            return
        own = torch.tensor(list(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
        of_all = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(of_all, own, group=self.group)
        others = [rank for rank, digest in enumerate(of_all) if not torch.equal(digest, of_all[0])]
        if others:
            raise UsageError(
                f"the processes were given different {what}: that of process {others[0]} is not that of process 0",
                "start all of them with the same command, on the same files and the same version of tallow",
            )

    def wait(self) -> None:
        """Until all processes have come here."""
        self.sum(0)

    def _combine(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, operation, group=self.group)
        return total.tolist()

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with the main one's."""
        if self.size == 1:
            return
        for bucket in buckets([tensor.detach() for tensor in tensors]):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, group=self.group, group_src=0)
            for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(values.view_as(tensor))


ALONE = World()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that `torchrun` has started, if it has; leave them at the end.

    Within such a block another one joins what is joined already.

    Raises:
        UsageError: The environment is not one that torchrun makes, or some of the processes do not come.
        Interrupted: Another process has ended before its time.
    """
    size = number_of_processes()
    if size == 1:
        yield ALONE
        return
    world = World(_from_environment("RANK", -1), size)
    if not 0 <= world.rank < size:
        raise UsageError(f"RANK must be from 0 to {size - 1} where WORLD_SIZE is {size}", "start it with torchrun")
    if dist.is_initialized():
        yield world
        return
    dist.init_process_group(_backend(), store=_meet(world), rank=world.rank, world_size=size, timeout=PATIENCE)
    try:
        yield world
        world.wait()
    except RuntimeError as error:
        if not any(name in str(error) for name in ("gloo", "NCCL")):
            raise
        raise Interrupted(
            f"process {world.rank} has stopped because another one did",
            "what that one says tells why; then run the same command again to go on",
        ) from error
    finally:
        dist.destroy_process_group()


def number_of_processes() -> int:
    """How many processes `torchrun` has started in all; 1 without it.

    Raises:
        UsageError: The environment is not one that torchrun makes.
    """
    return _from_environment("WORLD_SIZE", 1)


def _backend() -> str:
    """What carries tensors between processes: those on GPUs by NCCL, those on CPUs, as all sums of numbers, by gloo.

    Whether a stage trains on GPUs it says later; until something is sent between these, NCCL costs nothing.
    """
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _meet(world: World) -> Store:
    """The store at which the processes find each other."""
    try:
        store, *_ = next(rendezvous("env://", world.rank, world.size, timeout=JOIN_PATIENCE))
        store = PrefixStore(_common_name(store, world), store)
    except (dist.DistError, ValueError) as error:
        raise UsageError(
            f"process {world.rank} has not met the other {world.size - 1} of WORLD_SIZE {world.size}: "
            f"{str(error).splitlines()[0]}",
            "start all of them with torchrun, or unset WORLD_SIZE",
        ) from error
    store.set_timeout(PATIENCE)
    return store


def _common_name(store: Store, world: World) -> str:
    """A name that these processes have in common, and none that were before them.

    torchrun keeps its store when it starts processes again, with all that those before them have left there: addresses
    at which nobody answers. So the first process gives each other one the name, until it has the answer of one that is
    there now.
    """
    own = uuid.uuid4().hex
    if world.rank > 0:
        store.set(f"rank {world.rank}", own)
        common = store.get(f"to {own}").decode()
        store.set(f"{own} has {common}", "")
        return common
    deadline = time.monotonic() + JOIN_PATIENCE.total_seconds()
    for rank in range(1, world.size):
        while True:
            other = store.get(f"rank {rank}").decode()  # of one that is no more, until the new one has come
            store.set(f"to {other}", own)
            try:
                store.wait([f"{other} has {own}"], ANSWER_PATIENCE)
                break
            except dist.DistStoreError:
                if time.monotonic() > deadline:
                    raise
    return own


def buckets(tensors: Sequence[AnyTensor], size: int = BUCKET_BYTES) -> Iterator[list[AnyTensor]]:
    """Neighbours of one dtype and device, together about `size` bytes: few messages, little memory."""
    bucket: list[AnyTensor] = []
    for tensor in tensors:
        unlike = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if unlike or sum(t.nbytes for t in bucket) >= size:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError as error:
        raise UsageError(f"{name}={value} is not a number", "start it with torchrun, or unset it") from error
