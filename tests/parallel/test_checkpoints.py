"""A checkpoint goes on in any layout, on any number of processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import RATE, alone, layers_for, make, make_updater, rows_of, together, update
from tests.train.toys import loop_config

from tallow.files import publish_directory
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout, ParallelConfig, World
from tallow.train import checkpoint
from tallow.train.checkpoint import Checkpoints
from tallow.train.counters import Counters
from tallow.train.update import Updater

Settings = dict[str, Any]
UPDATES = 5
"""In each layout."""


def go_on(world: World, directory: Path, kind: str, layers: int, settings: Settings) -> None:
    """Take up the newest checkpoint, if there is one, do some updates, and leave a checkpoint and the weights."""
    checkpoints = directory / "checkpoints"
    # without a checkpoint what `alone` starts from, else something else
    seed = world.rank + 5 if checkpoints.exists() else 0
    layout = Layout(make(kind, seed, layers), ParallelConfig.model_validate(settings), world)
    updater = make_updater(layout, kind)
    kept = Checkpoints(checkpoints, updater.parameters | updater.moved, updater.optimizer, {}, 2, layout.mesh)
    done, _ = kept.restore()
    for step in range(done + 1, done + UPDATES + 1):
        update(updater, step, size=4)
    kept.begin(done + UPDATES, Counters(), in_background=done > 0)
    kept.finish()
    world.wait()
    weights = layout.gather()
    if world.is_main:
        save_file(weights, directory / "weights.safetensors")


WAYS: dict[str, list[tuple[int, Settings]]] = {
    "two, one": [(2, {"zero": 3}), (1, {})],
    "one, four": [(1, {}), (4, {"zero": 3, "replicas": 2})],
    "four, two": [(4, {"zero": 2}), (2, {"zero": 1})],
    "two, four": [(2, {}), (4, {"zero": 3})],
    "tensor": [(4, {"tensor": 2, "zero": 3}), (2, {"tensor": 2})],
    "pipelines": [(2, {"pipeline": 2}), (4, {"pipeline": 2, "zero": 3, "schedule": "interleaved"})],
    "pipeline, data": [(4, {"pipeline": 4}), (2, {})],
    "shared experts": [(4, {"expert": 2, "zero": 3}), (2, {"expert": 2})],
    "gathered experts": [(2, {"expert": 2}), (1, {})],
}
OF_EXPERTS = ("four, two", "pipelines", "shared experts", "gathered experts")


@pytest.mark.parametrize(
    ("kind", "way"),
    [("decoder", way) for way in WAYS if "experts" not in way] + [("biased experts", way) for way in OF_EXPERTS],
)
def test_goes_on_in_another_layout(kind: str, way: str, tmp_path: Path) -> None:
    layers = max(layers_for(size, kind, settings) for size, settings in WAYS[way])
    for size, settings in WAYS[way]:
        if size == 1:
            go_on(ALONE, tmp_path, kind, layers, settings)
        else:
            together(size, go_on, tmp_path, kind, layers, settings)
    _, expected = alone(kind, layers, 2 * UPDATES)
    weights = load_file(tmp_path / "weights.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=0)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def take_up_at_once(world: World, directory: Path) -> None:
    def publish_late(temporary: Path, path: Path) -> None:
        time.sleep(0.5)
        publish_directory(temporary, path)

    checkpoint.__dict__["publish_directory"] = publish_late
    layout = Layout(make("decoder", world.rank, 1), world=world)
    updater = make_updater(layout, "decoder")
    kept = Checkpoints(directory, updater.parameters, updater.optimizer, {}, 2, layout.mesh)
    kept.begin(1, Counters())
    kept.finish()
    assert kept.restore()[0] == 1


def test_all_see_the_newest_however_long_the_main_process_takes_for_it(tmp_path: Path) -> None:
    together(2, take_up_at_once, tmp_path)


def learn_in_groups(world: World, directory: Path, updates: int) -> None:
    """So many updates, each of what goes on from the checkpoint of the one before."""
    factors = {"embed*": 0.1, "layers.1.*proj.weight": 3.0, "lm_head*": 0.5}
    config = loop_config(optimizer="muon", weight_decay=0.5, learning_rate_factors=factors)
    for _ in range(updates):
        layout = Layout(make("untied", world.rank, 2), ParallelConfig(pipeline=world.size), world)
        updater = Updater(layout, causal, config)
        kept = Checkpoints(directory, updater.parameters, updater.optimizer, {}, 2, layout.mesh)
        step = kept.restore()[0] + 1
        updater.update(step, [rows_of(step)], 5 * RATE, "fp32")
        kept.begin(step, Counters())
        kept.finish()
        weights = layout.gather()
        if world.is_main:
            save_file(weights, directory / "weights.safetensors")


def test_stages_whose_parameters_fall_into_other_groups(tmp_path: Path) -> None:
    learn_in_groups(ALONE, tmp_path / "alone", 3)
    together(2, learn_in_groups, tmp_path / "stages", 2)
    learn_in_groups(ALONE, tmp_path / "stages", 1)
    expected, found = (load_file(tmp_path / way / "weights.safetensors") for way in ("alone", "stages"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=0)
