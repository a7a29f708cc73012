"""Optimizers where processes divide the weights: as on one process, or refused before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.parallel.layouts import RATE, ROWS, make, objective_of, together, update
from tests.train.toys import loop_config

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.parallel import ALONE, Layout, World
from tallow.train.checkpoint import Checkpoints
from tallow.train.config import LoopConfig
from tallow.train.counters import Counters
from tallow.train.optimizers.registry import AnyMethod
from tallow.train.update import Updater

DIVIDED: dict[str, dict[str, Any]] = {"zero": {"zero": 3}, "tensor": {"tensor": 2}, "expert": {"expert": 2}}
MATRICES = ("zero", "tensor")
WORKING = ("adam_mini", "galore", "muon")  # which do not take each weight by itself
NAMES = {kind.model_fields["name"].annotation.__args__[0] for kind in get_args(get_args(AnyMethod)[0])}
REFUSED = {"adafactor": ("zero", "tensor", "expert"), "soap": ("zero", "tensor"), "shampoo": ("zero", "tensor")}
DIVIDING = [
    (optimizer, name)
    for optimizer in sorted(NAMES - REFUSED.keys())
    for name in MATRICES
    if name == "zero" or optimizer in ("adam_mini", "adamw8bit", "galore")  # whose state has other shapes
] + [(optimizer, "expert") for optimizer in sorted(NAMES - {"lomo", "adalomo", "adafactor"})]


def losses(layout: Layout, config: LoopConfig) -> list[float]:
    updater = Updater(layout, objective_of("decoder"), config)
    return [update(updater, step, ROWS).loss for step in (1, 2, 3)]


def learn_divided(world: World, directory: Path) -> None:
    for optimizer in WORKING:
        for name in MATRICES:
            config = loop_config(learning_rate=RATE, optimizer=optimizer, parallel=DIVIDED[name])
            found = losses(Layout(make("decoder", 0, layers=1), config.parallel, world), config)
            if world.is_main:
                write_json(directory / f"{optimizer} {name}.json", {"losses": found})


def test_divided_matrices_learn_as_whole_ones(tmp_path: Path) -> None:
    together(2, learn_divided, tmp_path)
    for optimizer in WORKING:
        expected = losses(Layout(make("decoder", 0, layers=1)), loop_config(learning_rate=RATE, optimizer=optimizer))
        for name in MATRICES:
            assert read_json(tmp_path / f"{optimizer} {name}.json") == {"losses": pytest.approx(expected, abs=5e-5)}


def kind_for(name: str) -> str:
    return "experts" if name == "expert" else "decoder"


def updates(kind: str, seed: int, config: LoopConfig, world: World, directory: Path, until: int) -> list[float]:
    """Losses of the updates from what a directory holds on; then it holds what they have come to."""
    layout = Layout(make(kind, seed, layers=1), config.parallel, world)
    updater = Updater(layout, objective_of(kind), config)
    kept = Checkpoints(directory, updater.parameters, updater.optimizer, {}, 1, layout.mesh)
    found = []
    for step in range(kept.restore()[0] + 1, until + 1):
        torch.manual_seed(step)
        found.append(update(updater, step, ROWS).loss)
    kept.begin(until, Counters())
    kept.finish()
    return found


def stop_and_go_on(world: World, directory: Path) -> None:
    """Four updates in one piece, and taken up anew after two."""
    for optimizer, name in DIVIDING:
        config = loop_config(learning_rate=RATE, optimizer=optimizer, parallel=DIVIDED[name])
        found: dict[str, list[float]] = {}
        for way, stops in (("whole", [4]), ("parts", [2, 4])):
            found[way] = []
            for stop in stops:
                place, seed = directory / f"{optimizer} {name} {way}", len(found[way])
                found[way] += updates(kind_for(name), seed, config, world, place, stop)
        if world.is_main:
            write_json(directory / f"{optimizer} {name}.json", found)


def test_state_of_divided_weights_survives_a_stop(tmp_path: Path) -> None:
    together(2, stop_and_go_on, tmp_path)
    for optimizer, name in DIVIDING:
        found = read_json(tmp_path / f"{optimizer} {name}.json")
        assert found["parts"] == found["whole"], (optimizer, name)
        config = loop_config(learning_rate=RATE, optimizer=optimizer)
        alone = updates(kind_for(name), 0, config, ALONE, tmp_path / f"{optimizer} alone {name}", 5)
        # the one draws other targets in each layout, the eigenbases of the other amplify rounding
        few = {"sophia": 0.1, "soap": 5e-4}.get(optimizer, 5e-5)
        assert found["whole"] == pytest.approx(alone[:4], abs=few)
        # one process goes on with what two have saved
        parts = tmp_path / f"{optimizer} {name} parts"
        assert updates(kind_for(name), 5, config, ALONE, parts, 5) == pytest.approx(alone[4:], abs=few)


@pytest.mark.parametrize("optimizer", REFUSED)
def test_what_needs_whole_matrices_is_refused(optimizer: str) -> None:
    for setting in REFUSED[optimizer]:
        with pytest.raises(UsageError, match=rf"{optimizer} needs whole matrices, .*parallel\.{setting}"):
            loop_config(optimizer=optimizer, parallel={setting: 2})
    assert loop_config(optimizer=optimizer, parallel={"pipeline": 2, "context": 2}).optimizer.name == optimizer
