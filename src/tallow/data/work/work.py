"""All tasks of a step, those that are done left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tallow.console import progress
from tallow.data.work.engines import Engine
from tallow.data.work.step import AnyConfig, Input, Part, Step, Task
from tallow.errors import writing


class Work:
    """A directory in which steps are done.

    Args:
        directory: Where parts lie.
        engine: Who does the work.
    """

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory, self.engine = directory, engine
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self.used: set[str] = set()

    def each(self, step: Step[AnyConfig], given: Iterable[tuple[AnyConfig, Sequence[Input]]]) -> list[list[Part]]:
        """Do a step on each of these settings and inputs; what each of them gave, in their order.

        Raises:
            TallowError: What the step says of its tables, or there is no room for what it makes.
        """
        tasks = [Task(step, config, tuple(inputs), self.directory) for config, inputs in given]
        self.used |= {task.key for task in tasks}
        missing = [task for task in tasks if task.done() is None]
        if missing:
            title = step.name.rpartition(":")[2].lower()
            with progress(title, len(tasks), "parts", done=len(tasks) - len(missing)) as bar:
                for _ in self.engine.run(missing):
                    bar.advance()
        made = [task.done() for task in tasks]
        assert all(parts is not None for parts in made)
        return [parts for parts in made if parts is not None]

    def sweep(self) -> None:
        """Remove what none of the steps done here has made or used."""
        for file in self.directory.iterdir():
            if file.name.partition("-")[0].removesuffix(".json") not in self.used:
                file.unlink()
