"""Faults while state and weights are on disk."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights

from tallow.data.batch import Packed
from tallow.errors import CapacityError
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.loop import train
from tallow.train.offload import windows

STEPS = 12


def train_toy(directory: Path, place: Path, pause_s: float) -> None:
    torch.set_num_threads(1)
    windows.SMALL_BYTES, windows.WINDOW_BYTES = 1, 5000
    offload = {"state": "disk", "parameters": "disk", "directory": str(place)}
    config = loop_config(steps=STEPS, save_every=2, offload=offload)
    plain = markov_batches(config)

    def batches(step: int) -> list[Packed]:
        time.sleep(pause_s)
        return plain(step)

    model = tiny_model()
    train(Layout(model), causal, batches, config, new_run(directory))
    (directory / "weights").write_bytes(weights(model).numpy().tobytes())


def test_killed_it_leaves_nothing_on_the_disk_and_loses_nothing(tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "place"
    process = start(train_toy, run, place, 0.05)
    while not list((run / "checkpoints").glob("step-*")):
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert list(place.iterdir()) == []

    process = start(train_toy, run, place, 0.0)
    process.join(timeout=120)
    assert process.exitcode == 0
    config = loop_config(steps=STEPS)
    model = tiny_model()
    train(Layout(model), causal, markov_batches(config), config, new_run(tmp_path / "plain"))
    assert (run / "weights").read_bytes() == weights(model).numpy().tobytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than the toy's state needs."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_it_with_a_sentence(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "SMALL_BYTES", 1)
    config = loop_config(offload={"state": "disk", "directory": str(small_disk)})
    with pytest.raises(CapacityError, match="no space left") as full:
        train(Layout(tiny_model()), causal, markov_batches(config), config, new_run(tmp_path / "run"))
    assert full.value.exit_code == 4
    assert str(small_disk) in full.value.message
    # the file goes with those who remember the error
    full.value.__traceback__ = None
    del full
