from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.processes import start
from tests.train.toys import TIMINGS, loop_config, markov_batches, new_run, tiny_model, weights

from tallow.data.batch import Packed
from tallow.errors import CapacityError, TallowError
from tallow.files import read_json
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.run import StageRun
from tallow.train.loop import train

STEPS = 40


def train_toy(directory: Path, pause_s: float) -> None:
    """A run to be killed; it leaves its weights in a file, or exits with the code of its error."""
    torch.set_num_threads(1)
    config = loop_config(steps=STEPS, save_every=4, precision="auto")
    plain = markov_batches(config)

    def batches(step: int) -> list[Packed]:
        time.sleep(pause_s)
        return plain(step)

    model = tiny_model()
    try:
        train(Layout(model), causal, batches, config, new_run(directory))
    except TallowError as error:
        sys.exit(error.exit_code)
    (directory / "weights").write_bytes(weights(model).numpy().tobytes())


def learned(directory: Path) -> list[dict[str, Any]]:
    """The metrics but for those that tell the time."""
    return [
        {key: value for key, value in record.items() if key not in TIMINGS} for record in StageRun(directory).metrics()
    ]


def wait_for_steps(process: ForkServerProcess, directory: Path, steps: int) -> None:
    """Until so many steps are in the metrics."""
    metrics = directory / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < steps:
        assert process.is_alive()
        time.sleep(0.002)


def finish(process: ForkServerProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def test_killed_at_any_instant_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(train_toy, whole, 0.0)) == 0
    # what the first run has found to be faster, the other must not find otherwise on a busy machine
    killed.mkdir()
    shutil.copy(whole / "workload.json", killed)

    seed = time.time_ns()
    print(f"{seed=}")
    chance = random.Random(seed)
    for steps in (5, 18, 31):
        process = start(train_toy, killed, 0.004)
        wait_for_steps(process, killed, steps)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert finish(process) == -signal.SIGKILL
    assert finish(start(train_toy, killed, 0.0)) == 0

    assert (killed / "weights").read_bytes() == (whole / "weights").read_bytes()
    assert learned(killed) == learned(whole)
    assert [record["step"] for record in learned(killed)] == list(range(1, STEPS + 1))
    assert not list((killed / "checkpoints").glob(".*"))


def test_sigterm_ends_with_the_code_for_interrupted(tmp_path: Path) -> None:
    process = start(train_toy, tmp_path, 0.01)
    wait_for_steps(process, tmp_path, 3)
    process.terminate()
    assert finish(process) == 5
    newest = max((tmp_path / "checkpoints").iterdir())
    assert read_json(newest / "state.json")["step"] == len(learned(tmp_path)) < STEPS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a good one of the toy's checkpoints, but not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_it_and_the_checkpoint_before_is_whole(small_disk: Path, tmp_path: Path) -> None:
    config = loop_config(steps=20, save_every=10, keep_checkpoints=1)
    batches = markov_batches(config)
    with pytest.raises(CapacityError, match="no space left") as full:
        train(Layout(tiny_model()), causal, batches, config, new_run(small_disk))
    assert full.value.exit_code == 4
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000010"]

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_disk, elsewhere)
    model, whole = tiny_model(seed=1), tiny_model()
    train(Layout(model), causal, batches, config, new_run(elsewhere))
    train(Layout(whole), causal, batches, config, new_run(tmp_path / "whole"))
    assert torch.equal(weights(model), weights(whole))
