"""Checkpoints: everything that a run needs to go on as if it had not stopped.

`checkpoints/step-00000500/` holds, for each process that has something of its own, `part-00000.safetensors` (what is
trained, in fp32, and the optimizer's state; see `checkpoint_part.py`) and `part-00000.json` (what of the optimizer's
state is no tensor, and the other file's size and hash), and one `state.json` (step, counters, what was being trained,
and size and hash of the parts' `.json`). A directory gets its name when all of it is on the disk. It can be loaded by
another number of processes, and by one.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from torch import nn

from tallow.console import say
from tallow.errors import DataError, Interrupted, UsageError, reading, writing
from tallow.files import hash_file, publish_directory, read_json, write_json
from tallow.parallel.compressed_sum import CompressedSum
from tallow.parallel.mesh import Mesh
from tallow.recipe import Section
from tallow.train.checkpoint_files import Shares, take_shares, write_shares
from tallow.train.checkpoint_part import CheckpointPart
from tallow.train.counters import Counters
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.outer import OuterOptimizer
from tallow.train.state_tree import Structure

STATE = "state.json"
PARTIAL = ".partial"
TENSORS = ".safetensors"


class FileRecord(Section):
    """A file as it was written."""

    bytes: int
    sha256: str


class Part(Section):
    """`part-00000.json`.

    Args:
        tensors: `part-00000.safetensors`.
        optimizer: What of the optimizer's state is no tensor.
        worker: Whose it is.
    """

    tensors: FileRecord
    optimizer: Structure
    worker: int = 0


class State(Section):
    """`state.json`.

    Args:
        step: Updates done.
        counters: What the loop counts and remembers from the start of the run.
        identity: What was being trained.
        parts: The `.json` files of all processes.
    """

    format: Literal["tallow.checkpoint.v3"] = "tallow.checkpoint.v3"
    step: int
    counters: Counters
    identity: dict[str, Any]
    parts: dict[str, FileRecord]


@dataclass(frozen=True)
class _Saving:
    """A checkpoint that is being written."""

    step: int
    counters: Counters
    written: Future[None]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they are, for all processes.
        parameters: What is trained, by name: this process's shares.
        optimizer: What trains it.
        identity: What else must be the same for a checkpoint to be gone on from, as JSON values.
        keep: Number of checkpoints that are kept.
        mesh: The processes; with `outer`, those of this worker.
        outer: Of workers that make updates of their own.
        compressed: What sums gradients, where it compresses them.

    All processes must call each method but `written`.
    """

    def __init__(
        self,
        directory: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: JointOptimizer,
        identity: Mapping[str, Any],
        keep: int,
        mesh: Mesh,
        outer: OuterOptimizer | None = None,
        compressed: CompressedSum | None = None,
    ) -> None:
        self.directory, self.keep = directory, keep
        self.part = CheckpointPart(parameters, optimizer, mesh, outer, compressed)
        self.identity = dict(identity)
        self.world = outer.workers.everyone if outer else mesh.world
        self.pending: _Saving | None = None

    @property
    def written(self) -> bool:
        """Whether this process has written its part of a checkpoint that was begun."""
        return self.pending is not None and self.pending.written.done()

    def begin(self, step: int, counters: Counters, *, in_round: bool = False, in_background: bool = False) -> None:
        """Write this process's part of a checkpoint; it counts when all have called `finish`.

        Args:
            in_round: The workers' weights are not the same now.
            in_background: Training may go on meanwhile; what is written is copied first.
        """
        assert self.pending is None, "finish the one before"
        tensors, structure = self.part.tensors(in_round=in_round)
        shares = take_shares(tensors, copied=in_background)
        executor = ThreadPoolExecutor(1)
        written = executor.submit(self._write_part, self._path(step, PARTIAL), shares, structure)
        executor.shutdown(wait=not in_background)
        self.pending = _Saving(step, counters, written)

    def finish(self) -> None:
        """See the checkpoint that was begun through, if there is one, then remove those that are too old.

        Raises:
            CapacityError: The disk is full; earlier checkpoints are as they were.
            UsageError: The place cannot be written.
            Interrupted: Another process could not write its part.
        """
        saving, self.pending = self.pending, None
        if saving is None:
            return
        error = saving.written.exception()  # waits
        path, temporary = self._path(saving.step), self._path(saving.step, PARTIAL)
        [failed] = self.world.max(error is not None)
        if failed:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise error or Interrupted(
                f"the checkpoint of step {saving.step:,} is not whole, since another process could not write its part",
                "what that one says tells why; then run the same command again to go on",
            )
        if self.world.is_main:
            with writing(temporary):
                parts = {part.name: _record(part) for part in sorted(temporary.glob("part-*.json"))}
            state = State(step=saving.step, counters=saving.counters, identity=self.identity, parts=parts)
            write_json(temporary / STATE, state.model_dump(mode="json"))
            with writing(path):
                publish_directory(temporary, path)
            # what is of a later step was passed over as damaged: it must not be kept in the place of better ones
            earlier = [present for step, present in self._present() if step <= saving.step]
            for old in earlier[: -self.keep]:
                shutil.rmtree(old)

    def restore(self, before: int | None = None) -> tuple[int, Counters]:
        """Load the newest whole checkpoint, or the newest of an earlier step than `before`.

        Returns:
            Its step and counters; step 0 if there is none.

        Raises:
            UsageError: It is of a run with other settings.
        """
        self.world.wait()  # until the main process has put the newest in its place
        for step, path in reversed(self._present()):
            if before is not None and step >= before:
                continue
            state, damage = None, ""
            try:
                state = self._read_state(path, step)
            except DataError as error:
                damage = error.message
            [damaged] = self.world.max(state is None)
            if damaged:
                say(f"checkpoint {path} is passed over: {damage or 'another process finds it damaged'}")
                continue
            assert state is not None
            self._refuse_other(state, path)
            self._load(path)
            return step, state.counters
        return 0, Counters()

    def go_back(self, step: int, counters: Counters) -> None:
        """Change what the whole checkpoint of a step has counted, then remove those of later steps, newest first."""
        self.world.wait()  # until all have read them
        if self.world.is_main:
            path = self._path(step) / STATE
            write_json(path, _read(State, path).model_copy(update={"counters": counters}).model_dump(mode="json"))
            for other, later in reversed(self._present()):
                if other > step:
                    shutil.rmtree(later)

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed while it saved has left."""
        for path in self.directory.glob(".step-*") if self.world.is_main else []:
            shutil.rmtree(path)

    def clear(self) -> None:
        """Remove all checkpoints."""
        if self.world.is_main and self.directory.exists():
            shutil.rmtree(self.directory)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{'.' if suffix else ''}step-{step:08d}{suffix}"

    def _present(self) -> list[tuple[int, Path]]:
        """Steps and directories of all checkpoints, whole or not, oldest first."""
        steps = [re.fullmatch(r"step-(\d+)", path.name) for path in self.directory.glob("step-*")]
        return sorted((int(match[1]), self.directory / match[0]) for match in steps if match)

    def _write_part(self, directory: Path, shares: Shares, structure: Structure) -> None:
        if not shares.tensors and not self.part.speaks:
            return
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"part-{self.world.rank:05d}{TENSORS}"
            with self.part.optimizer.passing():
                write_shares(shares, path)
            part = Part(tensors=_record(path), optimizer=structure, worker=self.part.worker)
            write_json(path.with_suffix(".json"), part.model_dump(mode="json"))

    def _refuse_other(self, state: State, path: Path) -> None:
        differing = [key for key in state.identity | self.identity if state.identity.get(key) != self.identity.get(key)]
        if differing:
            raise UsageError(
                f"checkpoint {path} is of a run with other settings ({', '.join(differing)})",
                "set them as they were, choose another directory with --run, or start anew with --fresh",
            )

    def _load(self, path: Path) -> None:
        structures: dict[int, list[Structure]] = defaultdict(list)
        for file in sorted(path.glob("part-*.json")):
            part = Part.model_validate(read_json(file))
            structures[part.worker].append(part.optimizer)
        self.part.load(path, structures)

    def _read_state(self, path: Path, step: int) -> State:
        """The state of a checkpoint whose files are as they were written; each process looks at its share of them.

        Raises:
            DataError: Something is missing, broken or changed.
        """
        state = _read(State, path / STATE)
        if state.step != step:
            raise DataError(f"{path / STATE} is of another checkpoint", "")
        files = {*state.parts, *(Path(name).with_suffix(TENSORS).name for name in state.parts)}
        if not files or {file.name for file in path.glob("part-*")} != files:
            raise DataError(f"{path} has other parts than its {STATE} says", "")
        for name, record in self.world.share(list(state.parts.items())):
            _check(path / name, record)
            _check((path / name).with_suffix(TENSORS), _read(Part, path / name).tensors)
        if state.identity == self.identity:  # else it is refused for that
            self.part.require_weights(path)
        return state


AnySection = TypeVar("AnySection", bound=Section)


def _read(kind: type[AnySection], path: Path) -> AnySection:
    try:
        return kind.model_validate(read_json(path, "checkpoint file"))
    except ValidationError as error:
        raise DataError(f"{path} is not of a checkpoint", "") from error


def _check(path: Path, record: FileRecord) -> None:
    with reading(path, "checkpoint file"):
        size = path.stat().st_size
    if size != record.bytes:
        raise DataError(f"{path.name} has {size:,} bytes instead of {record.bytes:,}", "")
    if hash_file(path) != record.sha256:
        raise DataError(f"{path.name} is not what was written", "")


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=hash_file(path))
