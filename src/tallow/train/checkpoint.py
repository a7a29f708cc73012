"""Checkpoints: everything that a run needs to go on as if it had not stopped.

`checkpoints/step-00000500/` holds `weights.safetensors` (what is trained, fp32), `optimizer.safetensors` (the
optimizer's state, `<parameter>/<slot>`) and `state.json` (step, counters, what of the optimizer's state is no tensor,
what was being trained, and size and hash of the two files). A directory gets its name when all of it is on the disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from tallow.console import say
from tallow.errors import DataError, UsageError, reading
from tallow.files import atomic_directory, hash_file, read_json, write_json
from tallow.models.formats.tensor_files import write_tensors
from tallow.recipe import Section
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.state_tree import Structure

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class FileRecord(Section):
    """A file as it was written."""

    bytes: int
    sha256: str


class State(Section):
    """`state.json`.

    Args:
        step: Updates done.
        counters: What the loop counts from the start of the run.
        optimizer: What of the optimizer's state is no tensor.
        identity: What was being trained.
        files: The tensor files.
    """

    format: Literal["tallow.checkpoint.v1"] = "tallow.checkpoint.v1"
    step: int
    counters: dict[str, int]
    # checkpoints of before have none; they are refused because their settings name no optimizer
    optimizer: Structure = Structure(values={}, kinds={}, strides={})
    identity: dict[str, Any]
    files: dict[str, FileRecord]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they are.
        parameters: What is trained, by name.
        optimizer: What trains it.
        identity: What else must be the same for a checkpoint to be gone on from, as JSON values.
        keep: Number of checkpoints that are kept.
    """

    def __init__(
        self,
        directory: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: JointOptimizer,
        identity: Mapping[str, Any],
        keep: int,
    ) -> None:
        self.directory, self.keep = directory, keep
        self.parameters, self.optimizer = parameters, optimizer
        shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
        self.identity = {**identity, "parameters": shapes}

    def save(self, step: int, counters: Mapping[str, int]) -> None:
        """Write the checkpoint of a step, then remove those that are too old.

        Raises:
            CapacityError: The disk is full; earlier checkpoints are as they were.
            UsageError: The place cannot be written.
        """
        moments, structure = self.optimizer.state()
        with atomic_directory(self._path(step)) as temporary:
            records = {}
            for name, tensors in ((WEIGHTS, self._weights()), (OPTIMIZER, moments)):
                path = temporary / name
                write_tensors(tensors, path)
                records[name] = FileRecord(bytes=path.stat().st_size, sha256=hash_file(path))
            state = State(
                step=step, counters=dict(counters), optimizer=structure, identity=self.identity, files=records
            )
            write_json(temporary / STATE, state.model_dump(mode="json"))
        for _, path in self._present()[: -self.keep]:
            shutil.rmtree(path)

    def restore(self) -> tuple[int, dict[str, int]]:
        """Load the newest whole checkpoint.

        Returns:
            Its step and counters; (0, {}) if there is none.

        Raises:
            UsageError: It is of a run with other settings.
        """
        for step, path in reversed(self._present()):
            try:
                state = _read_state(path, step)
            except DataError as error:
                say(f"checkpoint {path} is passed over: {error.message}")
                continue
            self._refuse_other(state, path)
            self._load(path, state)
            return step, dict(state.counters)
        return 0, {}

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed while it saved has left."""
        for path in self.directory.glob(".step-*"):
            shutil.rmtree(path)

    def clear(self) -> None:
        """Remove all checkpoints."""
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _present(self) -> list[tuple[int, Path]]:
        """Steps and directories of all checkpoints, whole or not, oldest first."""
        steps = [re.fullmatch(r"step-(\d+)", path.name) for path in self.directory.glob("step-*")]
        return sorted((int(match[1]), self.directory / match[0]) for match in steps if match)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def _refuse_other(self, state: State, path: Path) -> None:
        differing = [key for key in state.identity | self.identity if state.identity.get(key) != self.identity.get(key)]
        if differing:
            raise UsageError(
                f"checkpoint {path} is of a run with other settings ({', '.join(differing)})",
                "set them as they were, choose another directory with --run, or start anew with --fresh",
            )

    def _load(self, path: Path, state: State) -> None:
        weights = load_file(path / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state(load_file(path / OPTIMIZER), state.optimizer)


def _read_state(path: Path, step: int) -> State:
    """The state of a checkpoint, all files of which are as they were written.

    Raises:
        DataError: Something is missing, broken or changed.
    """
    try:
        state = State.model_validate(read_json(path / STATE, "checkpoint state"))
    except ValidationError as error:
        raise DataError(f"{path / STATE} is not the state of a checkpoint", "") from error
    if state.step != step or set(state.files) != {WEIGHTS, OPTIMIZER}:
        raise DataError(f"{path / STATE} is of another checkpoint", "")
    for name, record in state.files.items():
        with reading(path / name, "checkpoint file"):
            size = (path / name).stat().st_size
        if size != record.bytes:
            raise DataError(f"{name} has {size:,} bytes instead of {record.bytes:,}", "")
        if hash_file(path / name) != record.sha256:
            raise DataError(f"{name} is not what was written", "")
    return state
