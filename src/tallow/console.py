"""What a person sees while work goes on: progress and messages, always on standard error.

On a terminal progress is a live bar (rich); elsewhere a plain line every few seconds.
Standard output belongs to results.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # imported when something is said or shown: most of what imports this file says nothing
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_LINE_SECONDS = 10.0


def is_main_process() -> bool:
    """Whether this is the one of the processes that `torchrun` has started that writes files and talks to the user."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def stderr() -> Console:
    """A console on the present standard error (made anew, so that redirection is honoured)."""
    return _console_class()(stderr=True, highlight=False, quiet=not is_main_process())


def say(message: str) -> None:
    """One line for the person who watches."""
    stderr().print(message, markup=False, soft_wrap=True)


@functools.cache
def _console_class() -> type[Console]:
    from rich.console import Console

    class PatientConsole(Console):
        """Goes on in silence when whoever read it has left: nobody's reading must end the work."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return PatientConsole


class ProgressBar(Protocol):
    def advance(self, amount: int = 1, note: str = "") -> None:
        """Go `amount` units on; `note` is a short text such as `loss 2.31`."""
        ...

    def expect(self, amount: int, done: int = 0) -> None:
        """There are `amount` more units, `done` of them already."""
        ...


@contextmanager
def progress(title: str, total: int | None, unit: str = "", done: int = 0) -> Iterator[ProgressBar]:
    """Show progress of `total` units (None: unknown), `done` of which were there before."""
    console = stderr()
    if console.is_terminal:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=False) as live:
            task = live.add_task(title, total=total, completed=done, note="")
            yield _LiveBar(live, task)
            if total is None:
                live.update(task, total=live.tasks[0].completed)
    else:
        lines = _PlainLines(console, title, total, unit, done)
        yield lines
        lines.close()


class _LiveBar:
    def __init__(self, live: Progress, task: TaskID) -> None:
        self.live, self.task = live, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.live.advance(self.task, amount)
        if note:
            self.live.update(self.task, note=note)

    def expect(self, amount: int, done: int = 0) -> None:
        total = self.live.tasks[0].total
        self.live.update(self.task, total=None if total is None else total + amount, advance=done)


class _PlainLines:
    def __init__(self, console: Console, title: str, total: int | None, unit: str, done: int) -> None:
        self.console, self.title, self.total, self.unit, self.done = console, title, total, unit, done
        self.note = ""
        self.start = self.last = time.monotonic()
        self.printed = -1

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if time.monotonic() - self.last >= PLAIN_LINE_SECONDS:
            self._print()

    def expect(self, amount: int, done: int = 0) -> None:
        self.total = None if self.total is None else self.total + amount
        self.done += done

    def close(self) -> None:
        if self.printed != self.done:
            self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        self.printed = self.done
        of = f"/{self.total:,}" if self.total is not None else ""
        parts = (f"{self.title}: {self.done:,}{of} {self.unit}".rstrip(), f"{self.last - self.start:.0f} s", self.note)
        self.console.print("  ".join(part for part in parts if part), markup=False, soft_wrap=True)
