"""Who does the tasks: this process, others beside it, or those of a Ray cluster. What is made is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any, Protocol, Self

from tallow import errors
from tallow.data.work import worker
from tallow.data.work.step import Task
from tallow.errors import CapacityError, TallowError, UsageError

AHEAD = 2
"""Tasks that wait for each process."""


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
    """Processes of this machine; with one of them, this one."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._workers:
            self._workers.pop().close()

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        if self.processes == 1 or len(tasks) <= 1:
            for task in tasks:
                task.perform()
                yield
            return
        count = min(self.processes, len(tasks))
        self._workers += [_Worker() for _ in range(count - len(self._workers))]
        free: SimpleQueue[_Worker] = SimpleQueue()
        for worker_process in self._workers:
            free.put(worker_process)

        def perform(task: Task) -> None:
            worker_process = free.get()
            try:
                worker_process.perform(task)
            finally:
                free.put(worker_process)

        with ThreadPoolExecutor(count) as pool:
            done = False
            try:
                yield from in_order(pool, perform, tasks, AHEAD * count)
                done = True
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if not done:  # else what is under way would have to be waited for
                    self.__exit__()


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
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        with ray.data.DataContext.current(context):
            given = [{"task": json.dumps(task.as_json())} for task in tasks]
            answers = ray.data.from_items(given, override_num_blocks=max(1, len(given))).map(_answer)
            for row in answers.iter_rows():
                check(json.loads(row["answer"]))
                yield


def _answer(row: dict[str, str]) -> dict[str, str]:
    return {"answer": worker.answer(row["task"])}


class _Worker:
    """A process that performs one task after another."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", worker.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the main process alone, which ends this one
            )
        except OSError as error:
            raise CapacityError(
                f"no process can be started: {error.strerror}", "set cluster.processes lower"
            ) from error

    def perform(self, task: Task) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task.as_json()) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line.endswith("\n"):
            status = self._process.wait()
            raise CapacityError(
                f"a process has ended ({status}) while it worked on {task.step.name}, perhaps for want of memory",
                "set cluster.processes or prepare.part_mb lower; the same command goes on",
            )
        check(json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


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
    waiting: deque[Future[Any]] = deque(pool.submit(function, item) for item in islice(items, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(items, 1))
