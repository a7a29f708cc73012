"""A run directory: what one stage was told, what it measured, what it cost and what it came from.

`runs/<name>/<stage>/` holds `recipe.yaml` (a recipe of the resolved settings), `started.json` (which work was begun),
`plan.json` (how many steps it has, where that is known), `metrics.jsonl`, `ledger.json` (the cost), the stage's
product, and, written last, `lineage.json` (content hashes of every input and of the product). A stage whose lineage
matches its settings and inputs is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

import tallow
from tallow.console import is_main_process, say
from tallow.errors import DataError, UsageError, writing
from tallow.files import (
    PARTIAL,
    REPLACED,
    atomic_file,
    file_stamps,
    hash_path,
    read_json,
    read_records,
    write_json,
    write_text,
)
from tallow.recipe import Section, dump_recipe, replace_settings
from tallow.work import Work, fingerprint_stage

RAPL = Path("/sys/class/powercap")
RECIPE = "recipe.yaml"
STARTED = "started.json"
PLAN = "plan.json"
LOCK_TRIES, LOCK_PAUSE_S = 5, 0.02
CHECKPOINTS = "checkpoints"
WORK = "work"
"""A directory of files each of which is named by a hash of what made it: they stay right whatever settings change."""
METRICS = "metrics.jsonl"
LINEAGE = "lineage.json"


@dataclass
class Ledger:
    """What a stage has cost so far; it adds up over interruptions.

    Times are seconds, memory bytes, energy joules (None where the machine does not tell), cost in
    the currency of `price_per_hour`. `compile_s` is the part of `wall_s` in which the work waited for a compiler.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    tokens: int = 0
    flops: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    compile_s: float = 0.0
    peak_rss_bytes: int = 0
    peak_gpu_bytes: int = 0
    energy_j: float | None = None
    price_per_hour: float = 0.0

    @property
    def cost(self) -> float:
        return self.wall_s / 3600 * self.price_per_hour


@dataclass(frozen=True)
class Decision:
    """What a setting that was left open (`auto`) has come to, and why."""

    value: str | int | float
    reason: str


@dataclass
class StageRun:
    """The directory in which one stage works.

    Args:
        directory: Where the stage writes; made when needed.
        price_per_hour: What an hour of this machine costs; 0 if unknown.
        resume: Go on from the newest whole checkpoint instead of starting anew.
    """

    directory: Path
    price_per_hour: float = 0.0
    resume: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    decisions: dict[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = Path(self.directory)
        self._clock = _Clock.now()
        self._work: tuple[str, Section] | None = None

    @property
    def metrics_path(self) -> Path:
        return self.directory / METRICS

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the directory while this one works in it; processes of one `torchrun` share it.

        Raises:
            UsageError: Another process works there, or the place cannot be written.
        """
        path = lock_path(self.directory)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if is_main_process():
                _lock(handle)
            yield
        except BlockingIOError as error:
            raise UsageError(
                f"another process is at work in {self.directory}", "wait for it, or choose another directory with --run"
            ) from error
        finally:
            os.close(handle)

    def begin(self, stage: str, config: Section, inputs: Mapping[str, str]) -> None:
        """Make the directory ready for one piece of work.

        What a run of the same work left is kept, to be gone on from, whatever `config.finishing` says; what other work
        left is removed, but for checkpoints of work that is not finished, and what is right for any settings (`WORK`).

        Args:
            inputs: Content hash of each input, as `fingerprint_stage` takes them.

        Raises:
            UsageError: The directory holds files that no stage wrote, or checkpoints of unfinished other work.
        """
        started, work = self.directory / STARTED, Work.of(stage, config, inputs)
        self._remove_leftovers()
        begun = _read_mark(started)
        same_work = begun.get("fingerprint") == work.fingerprint
        if self.resume and not same_work:
            self._refuse_to_lose(begun, work)
        if not (same_work and self.resume):
            self._clear()
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / LINEAGE).unlink(missing_ok=True)
        # first of all files: it tells that the directory is ours, whenever we are killed
        write_json(started, {"fingerprint": work.fingerprint, **asdict(work)})
        self._work = stage, config
        self._save_recipe()
        forget_peak_rss()
        self.ledger = Ledger(price_per_hour=self.price_per_hour)
        if same_work and self.resume:
            self._load_ledger()
        self._clock = _Clock.now()

    def decide(self, setting: str, value: str | int | float, reason: str) -> None:
        """Note what a setting that was left open has come to.

        `recipe.yaml` gets the value, so that running it gives the same result; the work stays the one that was begun.

        Args:
            setting: Its name from the stage's section on, such as `loop.precision`.
        """
        self.decide_together({setting: value}, reason)

    def decide_together(self, settings: Mapping[str, str | int | float], reason: str) -> None:
        """The same of several settings that only fit together, as those of a shape."""
        self.decisions |= {setting: Decision(value, reason) for setting, value in settings.items()}
        if self._work is not None:
            self._save_recipe()

    def _resolved(self, config: Section) -> Section:
        return replace_settings(config, {setting: decision.value for setting, decision in self.decisions.items()})

    def _save_recipe(self) -> None:
        assert self._work is not None
        stage, config = self._work
        notes = [
            f"# {stage}.{setting} was left open; {decision.value} was taken: {decision.reason}\n"
            for setting, decision in self.decisions.items()
        ]
        text = dump_recipe({stage: self._resolved(config).model_dump(mode="json")})
        write_text(self.directory / RECIPE, "".join(notes) + text)

    def _remove_leftovers(self) -> None:
        """Remove what a process wrote that was killed before it could give it its name (see `tallow.files`)."""
        # a directory that is not known to be ours is looked at no deeper than where our first file would be
        find = self.directory.rglob if (self.directory / STARTED).exists() else self.directory.glob
        with writing(self.directory):
            for leftover in [*find(f".*{PARTIAL}"), *find(f".*{REPLACED}")]:
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)

    def _refuse_to_lose(self, begun: Mapping[str, Any], work: Work) -> None:
        if _read_mark(self.directory / LINEAGE) or not any((self.directory / CHECKPOINTS).glob("step-*")):
            return
        differing = work.differences(begun)
        if not differing:
            raise UsageError(
                f"{self.directory} holds checkpoints, but {STARTED} does not tell what they are of",
                "choose another directory with --run, or begin anew with --fresh",
            )
        raise UsageError(
            f"{self.directory} holds checkpoints of a run that is not finished and had other settings: "
            + ", ".join(differing),
            "give the old ones to go on, choose another directory with --run, or begin anew with --fresh",
        )

    def _clear(self) -> None:
        if not self.directory.exists():
            return
        if any(self.directory.iterdir()) and not (self.directory / STARTED).exists():
            raise UsageError(
                f"{self.directory} holds files that are not of a tallow run", "choose another directory with --run"
            )
        with writing(self.directory):
            if not self.resume or not (self.directory / WORK).is_dir():
                shutil.rmtree(self.directory)
                return
            for path in self.directory.iterdir():
                if path.name in (WORK, STARTED):  # the mark is written anew, and tells until then that this is ours
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def plan(self, steps: int) -> None:
        """Note how many steps there are, for whoever watches."""
        write_json(self.directory / PLAN, {"steps": steps})

    def log(self, **values: float | int | str | None) -> None:
        """Append one record to metrics.jsonl."""
        with writing(self.metrics_path), open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole records of metrics.jsonl, oldest first."""
        return read_records(self.metrics_path)[0]

    def rewind_metrics(self, step: int) -> None:
        """Drop the records of steps after `step` (a resumed run measures them again)."""
        records, damaged = read_records(self.metrics_path)
        if damaged:
            say(f"passed over {damaged:,} damaged lines of {self.metrics_path}")
        kept = [record for record in records if record.get("step", 0) <= step]
        with atomic_file(self.metrics_path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def save_ledger(self) -> None:
        """Add the cost since the last call and write ledger.json."""
        clock = _Clock.now()
        ledger = self.ledger
        ledger.wall_s += clock.wall_s - self._clock.wall_s
        ledger.cpu_s += clock.cpu_s - self._clock.cpu_s
        ledger.peak_rss_bytes = max(ledger.peak_rss_bytes, peak_rss_bytes())
        if clock.energy_j is not None and self._clock.energy_j is not None:
            ledger.energy_j = (ledger.energy_j or 0.0) + clock.energy_j - self._clock.energy_j
        self._clock = clock
        write_json(self.directory / "ledger.json", {**asdict(ledger), "cost": ledger.cost})

    def _load_ledger(self) -> None:
        """Take up the ledger of the interrupted run that this one continues."""
        path = self.directory / "ledger.json"
        if path.exists():
            try:
                saved = read_json(path, "ledger")
                saved.pop("cost", None)
                self.ledger = TypeAdapter(Ledger).validate_python(saved)
            except (DataError, ValidationError):
                say(f"{path} is damaged, so the cost is counted from now on")
            self.ledger.price_per_hour = self.price_per_hour

    def reprice(self) -> None:
        """Bring the cost of finished work up to the present price."""
        if _read_mark(self.directory / "ledger.json").get("price_per_hour") != self.price_per_hour:
            self._load_ledger()
            write_json(self.directory / "ledger.json", {**asdict(self.ledger), "cost": self.ledger.cost})

    def finish(self, fingerprint: str, inputs: Mapping[str, str], product: Path, result: Mapping[str, Any]) -> None:
        """Write the ledger and, last of all, the lineage that marks the stage as done."""
        assert self._work is not None
        stage, config = self._work
        self.save_ledger()
        write_json(
            self.directory / LINEAGE,
            {
                "tallow": tallow.__version__,
                "finished": datetime.now(UTC).isoformat(),
                "fingerprint": fingerprint,
                "resolved_fingerprint": fingerprint_stage(stage, self._resolved(config), inputs),
                "decisions": {setting: asdict(decision) for setting, decision in self.decisions.items()},
                "inputs": dict(inputs),
                "product": str(product.relative_to(self.directory)),
                "product_hash": hash_path(product),
                "product_stamps": file_stamps(product),
                "result": dict(result),
            },
        )

    def finished(self, fingerprint: str) -> dict[str, Any] | None:
        """The result of this stage if it is done with these settings and inputs and its product is untouched.

        The settings may be those that were given or those that were decided on (`recipe.yaml`).
        """
        lineage = _read_mark(self.directory / LINEAGE)
        if fingerprint not in (lineage.get("fingerprint"), lineage.get("resolved_fingerprint")):
            return None
        product = self.directory / lineage["product"]
        if not product.exists():
            return None
        if lineage["product_stamps"] != file_stamps(product) and lineage["product_hash"] != hash_path(product):
            return None
        return lineage["result"]


def _lock(handle: int) -> None:
    """Lock a file, or raise BlockingIOError; who only looks whether it is locked (`tallow watch`) does so at once."""
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE_S)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_path(directory: Path) -> Path:
    """The file that is locked while a process works in a stage's directory."""
    return directory.with_name(f".{directory.name}.lock")


def hash_input(path: Path) -> str:
    """Content hash of a stage's input; a product that a finished stage has hashed is not read again."""
    lineage = _read_mark(path.parent / LINEAGE)
    if lineage.get("product") == path.name and lineage.get("product_stamps") == file_stamps(path):
        return str(lineage["product_hash"])
    return hash_path(path)


def rss_bytes() -> int:
    """Resident memory of this process now, or the largest so far where only that is told."""
    return _memory_bytes("VmRSS")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, or since `forget_peak_rss` where that works (Linux)."""
    return _memory_bytes("VmHWM")


def _memory_bytes(name: str) -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak_rss() -> None:
    """Begin to measure the peak anew, so that a stage is not charged for what came before it in the process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read_mark(path: Path) -> dict[str, Any]:
    """A mark that a stage left; empty if there is none or it is damaged, for then the work is done anew."""
    try:
        return read_json(path, "mark")
    except DataError:
        return {}


@dataclass(frozen=True)
class _Clock:
    wall_s: float
    cpu_s: float
    energy_j: float | None

    @classmethod
    def now(cls) -> _Clock:
        times = os.times()
        cpu_s = times.user + times.system + times.children_user + times.children_system
        return cls(time.monotonic(), cpu_s, _energy_j())


def _energy_j() -> float | None:
    """Energy counters of all processor packages (Linux powercap), None where they cannot be read."""
    try:
        counters = [int(path.read_text()) for path in sorted(RAPL.glob("*-rapl:?/energy_uj"))]
    except (OSError, ValueError):
        return None
    return sum(counters) / 1e6 if counters else None
