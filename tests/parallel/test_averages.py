"""Weights that are averaged for scoring leave no trace in training, however they are divided."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.parallel.layouts import RATE, ROWS, make, micro_batches, objective_of, rows_of, together, update
from tests.train.toys import loop_config

from tallow.files import read_json, write_json
from tallow.parallel import Layout, ParallelConfig, World
from tallow.train.update import Updater


def losses(layout: Layout) -> list[float]:
    objective = objective_of("decoder")
    updater = Updater(layout, objective, loop_config(learning_rate=RATE, optimizer="schedule_free"))
    found: list[float] = []
    for step in (1, 2, 3, 4):
        found.append(update(updater, step, size=2).loss)
        with updater.scoring("fp32"):
            layout.score(micro_batches(rows_of(99), layout.reader.share(range(ROWS)), ROWS)[0], objective)
    return found


def learn(world: World, directory: Path) -> None:
    found = {zero: losses(Layout(make("decoder", seed=0), ParallelConfig(zero=zero), world)) for zero in (2, 3)}
    if world.is_main:
        write_json(directory / "losses.json", found)


def test_scoring_changes_nothing(tmp_path: Path) -> None:
    together(2, learn, tmp_path)
    expected = losses(Layout(make("decoder", seed=0)))
    assert read_json(tmp_path / "losses.json") == {zero: pytest.approx(expected, abs=1e-5) for zero in ("2", "3")}
