"""Who does the tasks: threads of this process and of others beside it, or a Ray cluster. What is made is the same."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import copy_context
from itertools import accumulate, islice
from queue import SimpleQueue
from typing import Any, Protocol, Self

import pyarrow as pa

from tallow import errors
from tallow.data.groups import grouped
from tallow.data.work import worker
from tallow.data.work.step import Task
from tallow.errors import CapacityError, TallowError, UsageError
from tallow.kernels.memory import returning_freed_memory
from tallow.startup import ARROW_MEMORY

AHEAD = 2
"""Tasks that wait for each process."""
AT_ONCE = 8
"""Tasks that a process of a cluster is given together, at most: they are told of, or done again, together."""
MOST_PARTS = 100_000
"""That tasks for a cluster are given, all together, before the next ones are written down: a hundred bytes each."""


class Engine(Protocol):
    """Used as a context, which ends what it has started."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Perform the tasks; yields for each of them, in their order, when it is done.

        Raises:
            TallowError: As a task does.
        """
        ...


class LocalEngine:
    """Processes of this machine, of which this one is the first.

    Args:
        processes: How many.
        threads: Tasks that each of them performs at the same time. They share what a process has anyway, libraries and
            models, so they need less memory than processes.
    """

    def __init__(self, processes: int, threads: int = 1) -> None:
        self.processes, self.threads = processes, threads
        self._workers: list[_Worker] = []
        self._memory = ExitStack()

    def __enter__(self) -> Self:
        self._memory.enter_context(returning_freed_memory())
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()
        self._memory.close()

    def _end_workers(self) -> None:
        while self._workers:
            self._workers.pop().close()

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        count = min(self.processes * self.threads, len(tasks))
        if count <= 1:
            for task in tasks:
                task.perform()
                yield
            return
        wanted = -(-count // self.threads) - 1
        self._workers += [_Worker(self.threads) for _ in range(wanted - len(self._workers))]
        free: SimpleQueue[Callable[[Task], None]] = SimpleQueue()
        for _ in range(self.threads):
            free.put(Task.perform)
        for worker_process in self._workers:
            for channel in worker_process.channels:
                free.put(channel.perform)

        def perform(task: Task) -> None:
            performer = free.get()
            try:
                performer(task)
            finally:
                free.put(performer)

        with ThreadPoolExecutor(count) as pool:
            done = False
            try:
                yield from in_order(pool, perform, tasks, AHEAD * count)
                done = True
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if not done:  # else what other processes are at would have to be waited for
                    self._end_workers()


class RayEngine:
    """The processes of a Ray cluster; all machines must see the same files."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The cluster goes on: it may not be ours, and what comes next may want it."""

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        try:
            import ray
        except ImportError as error:
            raise UsageError("cluster.engine: ray needs Ray", "pip install 'tallow[cluster]'") from error
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        logging.getLogger("ray.data._internal").setLevel(logging.ERROR)  # else it tells how each step is planned
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        # else it shares out memory for the rows, which are some hundred bytes, anew after each of its tasks
        context.op_resource_reservation_enabled = False
        with ray.data.DataContext.current(context):
            for some in grouped(tasks, lambda task: task.size, MOST_PARTS):
                given = pa.table({"task": [json.dumps(task.as_json()) for task in some]})
                processors = max(1, int(ray.cluster_resources().get("CPU", 1)))  # none yet, if they come when needed
                sizes = block_sizes(len(some), processors)
                blocks = [given.slice(end - size, size) for size, end in zip(sizes, accumulate(sizes), strict=True)]
                at_once = min(len(blocks), (1 + AHEAD) * processors)
                for row in ray.data.from_arrow(blocks).map(_answer, concurrency=at_once).iter_rows():
                    check(json.loads(row["answer"]))
                    yield


def block_sizes(tasks: int, processors: int) -> list[int]:
    """How many tasks go into each block, which costs Ray some 20 ms whatever is in it.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987) with half its share: the next block has what is left, over
    twice the processors. So all end at about the same time though tasks differ, and few blocks are needed.

    Returns:
        Sizes, at most `AT_ONCE`, which sum to `tasks`.
    """
    sizes = list[int]()
    while tasks:
        sizes.append(min(AT_ONCE, -(-tasks // (2 * processors))))
        tasks -= sizes[-1]
    return sizes


def _answer(row: dict[str, str]) -> dict[str, str]:
    return {"answer": worker.answer(row["task"])}


class _Worker:
    """A process that performs tasks, some at the same time."""

    def __init__(self, threads: int) -> None:
        # what this process writes to, what the other reads from; and the other way round
        pipes = [(*os.pipe(), *os.pipe()) for _ in range(threads)]
        theirs = [end for to_read, _, _, to_write in pipes for end in (to_read, to_write)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", worker.__name__, *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                env={**ARROW_MEMORY, **os.environ},
                start_new_session=True,  # Ctrl-C is for the main process alone, which ends this one
            )
        except OSError as error:
            raise CapacityError(
                f"no process can be started: {error.strerror}", "set cluster.processes lower"
            ) from error
        finally:
            for end in theirs:
                os.close(end)
        self.channels = [_Channel(self._process, tasks, answers) for _, tasks, answers, _ in pipes]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for channel in self.channels:
            channel.close()


class _Channel:
    """A thread of another process, which performs one task after another."""

    def __init__(self, process: subprocess.Popen[bytes], tasks: int, answers: int) -> None:
        self._process = process
        self._tasks, self._answers = os.fdopen(tasks, "w", encoding="utf-8"), os.fdopen(answers, encoding="utf-8")

    def perform(self, task: Task) -> None:
        try:
            self._tasks.write(json.dumps(task.as_json()) + "\n")
            self._tasks.flush()
            line = self._answers.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line.endswith("\n"):
            status = self._process.wait()
            raise CapacityError(
                f"a process has ended ({status}) while it worked on {task.step.name}, perhaps for want of memory",
                "set cluster.processes, cluster.threads or prepare.part_mb lower; the same command goes on",
            )
        check(json.loads(line))

    def close(self) -> None:
        self._answers.close()
        with suppress(BrokenPipeError):  # what it did not take
            self._tasks.close()


def check(answer: dict[str, Any]) -> None:
    """Raise what a worker's answer says went wrong, if anything did."""
    if error := answer.get("error"):
        kind = getattr(errors, error["type"], None)
        assert isinstance(kind, type)
        assert issubclass(kind, TallowError)
        raise kind(error["message"], error["hint"])
    if bug := answer.get("bug"):
        raise RuntimeError(bug)


def in_order(pool: ThreadPoolExecutor, function: Any, items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Results in the order of the items, a few of which are begun at a time."""
    items = iter(items)

    def begin(item: Any) -> Future[Any]:
        return pool.submit(copy_context().run, function, item)

    waiting: deque[Future[Any]] = deque(begin(item) for item in islice(items, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(begin(item) for item in islice(items, 1))
