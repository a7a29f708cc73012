"""All tasks of a step, those that are done left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tallow.console import ProgressBar, progress
from tallow.data.inputs import Inputs
from tallow.data.work.engines import Engine
from tallow.data.work.step import AnyConfig, Part, Pieces, Step, Task
from tallow.errors import writing
from tallow.files import write_text
from tallow.recipe import Section


class Work:
    """A directory in which steps are done.

    Args:
        directory: Where parts lie; made when there is something to do.
        engine: Who does the work.
        earlier: Another directory, where what is done already may be, and which is left as it is.
        inputs: What is known of files and models that steps go by.
    """

    def __init__(
        self, directory: Path, engine: Engine, earlier: Path | None = None, inputs: Inputs | None = None
    ) -> None:
        self.directory, self.engine = directory, engine
        self.earlier, self.inputs = earlier, inputs or Inputs()
        self.used: set[str] = set()
        self._told: _Told | None = None

    @contextmanager
    def telling(self, title: str) -> Iterator[None]:
        """What is done within this block has one line of progress, if anything has to be done."""
        with _Told(title) as self._told:
            yield
        self._told = None

    def each(
        self, step: Step[AnyConfig], given: Iterable[tuple[AnyConfig, Sequence[Part | Pieces]]]
    ) -> list[list[Part]]:
        """Do a step on each of these settings and inputs; what each of them gave, in their order.

        Raises:
            TallowError: What the step says of its tables, or there is no room for what it makes.
        """
        tasks = [Task(step, config, inputs, self.directory) for config, inputs in given]
        self.used |= {task.key for task in tasks}
        found = [self._done(task) for task in tasks]
        missing = [task for task, parts in zip(tasks, found, strict=True) if parts is None]
        if missing:
            self._make_directory()
            with ExitStack() as stack:
                told = self._told or stack.enter_context(_Told(step.name.rpartition(":")[2].lower()))
                bar = told.expect(len(tasks), len(tasks) - len(missing))
                for _ in self.engine.run(missing):
                    bar.advance()
        made = [task.done() if parts is None else parts for task, parts in zip(tasks, found, strict=True)]
        assert all(parts is not None for parts in made)
        return [parts for parts in made if parts is not None]

    def _make_directory(self) -> None:
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def _done(self, task: Task) -> list[Part] | None:
        there = replace(task, directory=self.earlier).done() if self.earlier is not None else None
        return task.done() if there is None else there

    def keep(self, name: str, value: Section) -> None:
        """Write something beside the parts, as JSON."""
        self.used.add(name)
        self._make_directory()
        with writing(self.directory):
            write_text(self.directory / f"{name}.json", value.model_dump_json() + "\n")

    def sweep(self) -> None:
        """Remove what none of the steps done here has made or used."""
        for file in self.directory.iterdir():
            if file.name.partition("-")[0].removesuffix(".json") not in self.used:
                file.unlink()


class _Told:
    """One line of progress, which there is once something has to be done."""

    def __init__(self, title: str) -> None:
        self._title, self._stack = title, ExitStack()
        self._bar: ProgressBar | None = None

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def expect(self, tasks: int, done: int) -> ProgressBar:
        """There are so many more tasks, some of them done."""
        if self._bar is None:
            self._bar = self._stack.enter_context(progress(self._title, tasks, "tasks", done))
        else:
            self._bar.expect(tasks, done)
        return self._bar
