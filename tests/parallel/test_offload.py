"""What each process keeps on disk or on the CPU of the shares that it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import RATE, make, objective_of, together, update
from tests.train.toys import loop_config

from tallow.errors import UsageError
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.shares import own_share
from tallow.train import optimizer
from tallow.train.checkpoint import Checkpoints
from tallow.train.offload import windows
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.optimizers.on_host import HostOptimizer
from tallow.train.update import Updater

STEPS = 2
WAYS = {
    "plain": (JointOptimizer, "none"),
    "disk": (JointOptimizer, "disk"),
    "host and disk": (HostOptimizer, "disk"),
}


def updater_of(world: World, directory: Path, state: str, parameters: str = "none") -> Updater:
    layout = Layout(make("decoder", world.rank, layers=2), ParallelConfig(zero=3), world)
    offload = {"state": state, "parameters": parameters}
    config = loop_config(learning_rate=RATE, clip_norm=0.5, offload=offload)
    return Updater(layout, objective_of("decoder"), config, directory / str(world.rank))


def learn(world: World, directory: Path) -> None:
    """In each way half of the updates, a checkpoint, and the rest from there; weights to a file of the way's name."""
    windows.SMALL_BYTES, windows.WINDOW_BYTES = 1, 5000
    for way, (kind, state) in WAYS.items():
        optimizer.__dict__["JointOptimizer"] = kind
        for first in (0, STEPS // 2):
            updater = updater_of(world, directory, state)
            assert type(updater.optimizer) is kind
            checkpoints = Checkpoints(
                directory / way, updater.parameters, updater.optimizer, {}, 1, updater.layout.mesh
            )
            assert checkpoints.restore() == (first, {})
            for step in range(first + 1, first + STEPS // 2 + 1):
                update(updater, step, size=4)
            if state == "disk":
                state_windows = updater.optimizer.windows
                assert state_windows is not None
                tensors = updater.optimizer.state()[0].values()
                assert all(state_windows.file.holds(own_share(tensor)) for tensor in tensors)
            checkpoints.begin(first + STEPS // 2, {})
            checkpoints.finish()
            world.wait()
        weights = updater.layout.gather()
        if world.is_main:
            save_file(weights, directory / f"{way}.safetensors")
    optimizer.__dict__["JointOptimizer"] = JointOptimizer
    with pytest.raises(UsageError, match="divided"):
        updater_of(world, directory, "none", "disk")


def test_nothing_changes(tmp_path: Path) -> None:
    together(2, learn, tmp_path)
    expected = load_file(tmp_path / "plain.safetensors")
    for way in WAYS:
        weights = load_file(tmp_path / f"{way}.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in expected.items()), way
