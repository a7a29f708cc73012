"""What a run is doing now, read from its directory while another process works in it."""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tallow.errors import DataError
from tallow.files import read_json
from tallow.report.follow import Follower, Record, age_s
from tallow.run import LINEAGE, METRICS, PLAN, STARTED, lock_path

ANOMALIES = "anomalies.jsonl"
CURVE_POINTS = 4096
ANOMALIES_KEPT = 256

Status = Literal["running", "finished", "stopped"]


@dataclass
class StageView:
    """A stage as it is now.

    Args:
        directory: Its directory.
        status: Whether a process of this machine works in it, it is finished, or neither.
        latest: The last value of each metric.
        losses: Steps and training losses, oldest first; of a long run a sample.
        anomalies: The last records of `anomalies.jsonl`.
        steps: How many there will be, if that is known.
        silent_s: Seconds since the last record.
    """

    directory: Path
    status: Status = "stopped"
    latest: Record = field(default_factory=dict)
    losses: Sequence[tuple[int, float]] = ()
    anomalies: Sequence[Record] = ()
    steps: int | None = None
    silent_s: float | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds that its steps still take, without validation and checkpoints."""
        step, step_s = self.latest.get("step"), self.latest.get("step_s")
        if self.steps is None or not isinstance(step, int) or not isinstance(step_s, int | float):
            return None
        return max(0, self.steps - step) * step_s

    def as_json(self) -> dict[str, Any]:
        """All of it but the curve, with the metrics by their names."""
        place = {"stage": self.directory.name, "directory": str(self.directory), "status": self.status}
        times = {"steps": self.steps, "eta_s": self.eta_s, "silent_s": self.silent_s}
        return {**place, **times, **self.latest, "anomalies": list(self.anomalies)}


class Watch:
    """Follows the stage of a run that was last at work.

    Args:
        directory: Of a run, or of one stage.

    Raises:
        DataError: There is no such directory, or no stage has begun in it.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise DataError(f"run directory {directory} does not exist", "name one, such as runs/quickstart")
        self.directory = directory
        self._follow(self._current())

    def look(self) -> StageView:
        """The stage as it is now."""
        current = self._current()
        if current != self.view.directory:
            self._follow(current)
        view = self.view
        records, is_new = self._metrics.read()
        if is_new:
            view.latest = {}
            self._losses.clear()
        for record in records:
            view.latest |= record
            if isinstance(record.get("loss"), int | float) and isinstance(record.get("step"), int):
                self._losses.append((record["step"], record["loss"]))
        if len(self._losses) > CURVE_POINTS:
            self._losses = self._losses[::2]
        view.losses = self._losses
        noted, is_new = self._anomalies.read()
        if is_new:
            self._noted.clear()
        self._noted.extend(noted)
        view.anomalies = list(self._noted)
        view.steps = self._steps()
        view.silent_s = age_s(view.directory / METRICS, time.time())
        view.status = _status(view.directory)
        return view

    def _follow(self, directory: Path) -> None:
        self.view = StageView(directory)
        self._metrics, self._anomalies = Follower(directory / METRICS), Follower(directory / ANOMALIES)
        self._losses: list[tuple[int, float]] = []
        self._noted: deque[Record] = deque(maxlen=ANOMALIES_KEPT)

    def _current(self) -> Path:
        """The stage in which something was written last, of those at work if there are such."""
        if (self.directory / STARTED).exists():
            return self.directory
        begun = [path.parent for path in self.directory.glob(f"*/{STARTED}")]
        if not begun:
            raise DataError(
                f"{self.directory} is no run: no stage has begun there", "tallow run RECIPE.yaml begins one"
            )
        return max(begun, key=lambda path: (_status(path) == "running", _last_written(path), path.name))

    def _steps(self) -> int | None:
        try:
            steps = read_json(self.view.directory / PLAN)["steps"]
        except (DataError, KeyError):  # another stage than training, or it is about to begin
            return None
        return steps if isinstance(steps, int) else None


def _last_written(directory: Path) -> float:
    files = (directory / name for name in (STARTED, METRICS, LINEAGE))
    return max((os.stat(path).st_mtime for path in files if path.exists()), default=0.0)


def _status(directory: Path) -> Status:
    if _is_locked(lock_path(directory)):
        return "running"
    return "finished" if (directory / LINEAGE).exists() else "stopped"


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
