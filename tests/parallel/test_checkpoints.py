"""A checkpoint goes on in any layout, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import STEPS, alone, make, make_updater, together, update

from tallow.parallel import ALONE, Layout, ParallelConfig, World
from tallow.train.checkpoint import Checkpoints

Settings = dict[str, Any]


def go_on(world: World, directory: Path, kind: str, settings: Settings, steps: int) -> None:
    """Take up the newest checkpoint, do some more updates, and leave a checkpoint and the weights."""
    layout = Layout(make(kind, seed=world.rank + 5), ParallelConfig.model_validate(settings), world)
    updater = make_updater(layout, kind)
    checkpoints = Checkpoints(
        directory / "checkpoints", updater.parameters | updater.moved, updater.optimizer, {}, 2, layout.mesh
    )
    done, _ = checkpoints.restore()
    if not done:  # what `alone` starts from
        layout = Layout(make(kind, seed=0), ParallelConfig.model_validate(settings), world)
        updater = make_updater(layout, kind)
        checkpoints = Checkpoints(
            directory / "checkpoints", updater.parameters | updater.moved, updater.optimizer, {}, 2, layout.mesh
        )
    for step in range(done + 1, done + steps + 1):
        update(updater, step, size=4)
    checkpoints.begin(done + steps, {}, in_background=done > 0)
    checkpoints.finish()
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
    for size, settings in WAYS[way]:
        if size == 1:
            go_on(ALONE, tmp_path, kind, settings, STEPS // 2)
        else:
            together(size, go_on, tmp_path, kind, settings, STEPS // 2)
    _, expected = alone(kind)
    weights = load_file(tmp_path / "weights.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=0)
    assert not list((tmp_path / "checkpoints").glob(".*"))
