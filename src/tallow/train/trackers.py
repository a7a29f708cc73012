"""Programs that show metrics, beside `metrics.jsonl`: imported when they are asked for, and never a reason to stop."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from tallow.console import say
from tallow.errors import UsageError
from tallow.files import write_text
from tallow.recipe import load_recipe
from tallow.run import RECIPE, StageRun

TrackerName = Literal["tensorboard", "wandb"]


class Tracker(Protocol):
    """Takes metrics."""

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Take what was measured at a step; after going back to an earlier one, steps come again."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class Trackers:
    """Those that a run asks for; one that fails is given up, which is said once."""

    def __init__(self, names: Sequence[TrackerName], run: StageRun, done: int) -> None:
        self._trackers: dict[TrackerName, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._tolerating(name):
                self._trackers[name] = _start(name, run, done)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Give metrics to all."""
        for name, tracker in list(self._trackers.items()):
            with self._tolerating(name):
                tracker.log(step, record)

    def close(self) -> None:
        """End all."""
        for name, tracker in list(self._trackers.items()):
            with self._tolerating(name):
                tracker.close()

    @contextmanager
    def _tolerating(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker does, hours of training are worth more
            self._trackers.pop(name, None)
            say(f"{name} has failed, and the run goes on without it: {type(error).__name__}: {error}")


@contextmanager
def tracking(names: Sequence[TrackerName], run: StageRun, done: int) -> Iterator[Trackers]:
    """Trackers of a run within this block.

    Args:
        names: Which.
        run: What is tracked; what they write on this machine is in its directory.
        done: Steps that were done before.
    """
    trackers = Trackers(names, run, done)
    try:
        yield trackers
    finally:
        trackers.close()


def require_trackers(names: Sequence[TrackerName]) -> None:
    """See to it that trackers can be imported.

    Raises:
        UsageError: One is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"loop.trackers names {name}, which is not installed", "pip install 'tallow[trackers]'")


def _start(name: TrackerName, run: StageRun, done: int) -> Tracker:
    return TensorBoard(run, done) if name == "tensorboard" else WeightsAndBiases(run)


class TensorBoard:
    """Event files in `tensorboard/`, for `tensorboard --logdir runs`."""

    def __init__(self, run: StageRun, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # a resumed run measures the steps after its checkpoint again
        self._writer = SummaryWriter(str(run.directory / "tensorboard"), purge_step=done + 1 if done else None)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in `wandb/`.

    It is offline, for `wandb sync`, unless `WANDB_MODE` says otherwise; the other variables of its own are heeded, too.
    """

    def __init__(self, run: StageRun) -> None:
        import wandb

        place = run.directory.absolute()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tallow"),
            name=os.environ.get("WANDB_NAME", f"{place.parent.name}/{place.name}"),
            id=os.environ.get("WANDB_RUN_ID", _run_id(run)),
            resume="allow",
            dir=str(place),
            config=_settings(run),
            mode=_mode(os.environ.get("WANDB_MODE", "offline")),
            # standard output is for results, and programs of the user's are not to be looked at
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, record: Mapping[str, float]) -> None:
        self._run.log({"step": step, **record})

    def close(self) -> None:
        self._run.finish()


def _mode(name: str) -> Literal["online", "offline", "disabled", "shared"]:
    for mode in ("online", "offline", "disabled", "shared"):
        if name == mode:
            return mode
    raise ValueError(f"WANDB_MODE={name} is none of online, offline, disabled and shared")


def _run_id(run: StageRun) -> str:
    """The name that Weights & Biases know a run by: a resumed one keeps it, one that begins anew has another."""
    path = run.directory / "wandb" / "run-id"
    if not path.exists():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")


def _settings(run: StageRun) -> dict[str, Any]:
    recipe = run.directory / RECIPE
    return load_recipe(recipe) if recipe.exists() else {}
