"""What each process keeps on disk or on the CPU of the shares that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import RATE, make, objective_of, together, update
from tests.train.toys import loop_config

from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.shares import own_share
from tallow.train import optimizer
from tallow.train.checkpoint import Checkpoints
from tallow.train.counters import Counters
from tallow.train.offload import windows
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.optimizers.on_host import HostOptimizer
from tallow.train.update import Updater

STEPS = 2


class Way(NamedTuple):
    """How processes learn, and what they have elsewhere."""

    parallel: dict[str, Any]
    offload: dict[str, Any]
    kind: type[JointOptimizer] = JointOptimizer
    layers_on_host: bool = False


BOTH = {"state": "disk", "parameters": "disk"}
SHARDED, COPIES, SPLIT = {"zero": 3}, dict[str, Any](), {"tensor": 2}
WAYS = {
    "sharded": Way(SHARDED, {}),
    "sharded, state on host and disk": Way(SHARDED, {"state": "disk"}, HostOptimizer),
    "sharded, weights on disk": Way(SHARDED, BOTH),
    "sharded, weights on host": Way(SHARDED, {}, layers_on_host=True),
    "copies": Way(COPIES, {}),
    "copies, weights on disk": Way(COPIES, BOTH),
    "copies, weights on host": Way(COPIES, {}, layers_on_host=True),
    "split": Way(SPLIT, {}),
    "split, weights on disk": Way(SPLIT, BOTH),
}


def updater_of(world: World, directory: Path, way: Way) -> Updater:
    optimizer.__dict__["JointOptimizer"] = way.kind
    model, parallel = make("untied", world.rank, layers=3), ParallelConfig.model_validate(way.parallel)
    layout = Layout(model, parallel, world, layers_on_host=way.layers_on_host)
    config = loop_config(learning_rate=RATE, clip_norm=0.5, offload=way.offload)
    return Updater(layout, objective_of("untied"), config, directory / str(world.rank))


def require_on_disk(updater: Updater, way: Way) -> None:
    """See to it that what is to be on disk is there: of the layers' weights, when they have computed, and the state."""
    state_windows = updater.optimizer.windows
    assert state_windows is not None
    file: MappedFile = state_windows.file
    assert all(file.holds(own_share(tensor)) for tensor in updater.optimizer.state()[0].values())
    for name, parameter in updater.parameters.items():
        in_file = way.offload.get("parameters") == "disk" and "layers" in name
        assert file.holds(own_share(parameter.detach())) == in_file, name


def learn(world: World, directory: Path) -> None:
    """In each way half of the updates, a checkpoint, and the rest from there; weights to a file of the way's name."""
    windows.SMALL_BYTES, windows.WINDOW_BYTES = 1, 5000
    for name, way in WAYS.items():
        for first in (0, STEPS // 2):
            updater = updater_of(world, directory, way)
            assert type(updater.optimizer) is way.kind
            checkpoints = Checkpoints(
                directory / name, updater.parameters, updater.optimizer, {}, 1, updater.layout.mesh
            )
            assert checkpoints.restore() == (first, Counters())
            for step in range(first + 1, first + STEPS // 2 + 1):
                update(updater, step, size=2)
            if "disk" in way.offload.values():
                require_on_disk(updater, way)
            checkpoints.begin(first + STEPS // 2, Counters())
            checkpoints.finish()
            world.wait()
        weights = updater.layout.gather()
        if world.is_main:
            save_file(weights, directory / f"{name}.safetensors")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    directory = tmp_path_factory.mktemp("ways")
    together(2, learn, directory)
    return {name: load_file(directory / f"{name}.safetensors") for name in WAYS}


@pytest.mark.parametrize("name", [name for name in WAYS if "," in name])
def test_nothing_changes(learned: dict[str, dict[str, torch.Tensor]], name: str) -> None:
    expected, found = learned[name.partition(",")[0]], learned[name]
    assert all(torch.equal(found[weight], value) for weight, value in expected.items())
