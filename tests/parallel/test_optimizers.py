"""Optimizers where processes divide the weights: as on one process, or refused before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.parallel.layouts import RATE, ROWS, make, objective_of, together, update
from tests.train.toys import loop_config

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.parallel import Layout, World
from tallow.train.config import LoopConfig
from tallow.train.update import Updater

DIVIDED: dict[str, dict[str, Any]] = {"zero": {"zero": 3}, "tensor": {"tensor": 2}}
WORKING = ("adam_mini", "galore", "muon")  # which do not take each weight by itself
REFUSED = {"adafactor": ("zero", "tensor", "expert"), "soap": ("zero", "tensor"), "shampoo": ("zero", "tensor")}


def losses(layout: Layout, config: LoopConfig) -> list[float]:
    updater = Updater(layout, objective_of("decoder"), config)
    return [update(updater, step, ROWS).loss for step in (1, 2, 3)]


def learn_divided(world: World, directory: Path) -> None:
    for optimizer in WORKING:
        for name, parallel in DIVIDED.items():
            config = loop_config(learning_rate=RATE, optimizer=optimizer, parallel=parallel)
            found = losses(Layout(make("decoder", 0, layers=1), config.parallel, world), config)
            if world.is_main:
                write_json(directory / f"{optimizer} {name}.json", {"losses": found})


def test_divided_matrices_learn_as_whole_ones(tmp_path: Path) -> None:
    together(2, learn_divided, tmp_path)
    for optimizer in WORKING:
        expected = losses(Layout(make("decoder", 0, layers=1)), loop_config(learning_rate=RATE, optimizer=optimizer))
        for name in DIVIDED:
            assert read_json(tmp_path / f"{optimizer} {name}.json") == {"losses": pytest.approx(expected, abs=5e-5)}


@pytest.mark.parametrize("optimizer", REFUSED)
def test_what_needs_whole_matrices_is_refused(optimizer: str) -> None:
    for setting in REFUSED[optimizer]:
        with pytest.raises(UsageError, match=rf"{optimizer} needs whole matrices, .*parallel\.{setting}"):
            loop_config(optimizer=optimizer, parallel={setting: 2})
    assert loop_config(optimizer=optimizer, parallel={"pipeline": 2, "context": 2}).optimizer.name == optimizer
