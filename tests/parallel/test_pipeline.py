from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.parallel.layouts import (
    RATE,
    ROWS,
    make,
    make_updater,
    micro_batches,
    objective_of,
    rows_of,
    together,
    update,
)
from tests.train.toys import loop_config
from torch import Tensor

from tallow.data.batch import PADDING_DOCUMENT
from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.config import Schedule
from tallow.parallel.pipeline import cut_evenly, number_of_micro_batches
from tallow.parallel.recompute import Recompute
from tallow.parallel.stages import Stage
from tallow.train.precision import settle_workload
from tallow.train.update import Updater

counts = st.integers(1, 40)


@given(rows=st.integers(0, 40), largest=counts, stages=st.integers(2, 8), in_rounds=st.booleans())
def test_micro_batches_are_no_larger_than_asked_for(rows: int, largest: int, stages: int, in_rounds: bool) -> None:
    number = number_of_micro_batches(rows, largest, stages, in_rounds=in_rounds)
    assert number >= stages
    assert -(-rows // number) <= largest
    assert not in_rounds or number % stages == 0
    assert number - (stages if in_rounds else 1) < max(stages, -(-rows // largest)), "not more than are needed"


def test_rows_are_cut_anew_and_filled_up_with_padding() -> None:
    rows = rows_of(1).rows(slice(5))
    parts = cut_evenly(micro_batches(rows, range(5), 3), 3, 2)
    assert [len(part.tokens_BT) for part in parts] == [2, 2, 2]
    for number in range(5):
        part, place = parts[number // 2], number % 2
        assert part.tokens_BT[place].equal(rows.tokens_BT[number])
        assert part.trainable_BT[place].equal(rows.trainable_BT[number])
        assert part.documents_BT[place].equal(rows.documents_BT[number])
    assert parts[2].documents_BT[1].eq(PADDING_DOCUMENT).all()
    assert not parts[2].trainable_BT[1].any()


def test_no_rows_are_padding() -> None:
    parts = cut_evenly([], 2, 1)
    assert [part.documents_BT.eq(PADDING_DOCUMENT).all() for part in parts] == [True, True]


def report(layout: Layout, directory: Path) -> dict[str, Any]:
    """Parameters held, operations for a token, and what updates from few rows find."""
    updater = Updater(layout, objective_of("experts"), loop_config(learning_rate=RATE))
    batch = micro_batches(rows_of(1), range(5), 3)
    directory.mkdir()
    workload = settle_workload("fp32", updater.rehearse, batch[0], directory / "workload.json", layout)
    uneven = updater.update(1, batch, RATE, "fp32")
    lone = updater.update(2, micro_batches(rows_of(2), [1], 1), RATE, "fp32")
    rounded = updater.update(3, batch, RATE, "bf16")
    return {
        "parameters": sum(value.numel() for value in layout.parameters.values()),
        "flops": workload.flops_per_token,
        "updates": [[update.loss, update.gradient_norm, update.tokens] for update in (uneven, lone)],
        "bf16": rounded.loss,
    }


def gradients_when_sums_begin(world: World, schedule: Schedule) -> None:
    """Gradients of a stage begin to be summed once, when they are complete, though those of others are not."""
    layout = Layout(make("experts", seed=0), ParallelConfig(pipeline=2, schedule=schedule), world)
    assert layout._pipeline is not None
    stages = list(layout._pipeline.stages.values())
    seen: list[list[Tensor]] = []

    def gradients(stage: Stage) -> list[Tensor]:
        return [value.grad.clone() for value in stage.layers.parameters() if value.grad is not None]

    for stage in stages:
        stage.begin_sums = [lambda stage=stage: seen.extend([gradients(stage), gradients(stages[0])])]
    layout.backpropagate(micro_batches(rows_of(1), range(ROWS), 2), objective_of("experts"), nullcontext)
    assert len(seen) == 2 * len(stages)
    final = [gradients(stage) for stage in stages]
    begun, firsts = seen[::2], seen[1::2]
    # backward passes come to the later stage first
    for early, late in zip(begun, reversed(final), strict=True):
        assert len(early) == len(late) > 0
        assert all(torch.equal(*pair) for pair in zip(early, late, strict=True))
    if len(stages) > 1:
        assert not all(torch.equal(*pair) for pair in zip(firsts[0], final[0], strict=True))


def learn_in_pipeline(world: World, directory: Path) -> None:
    if world.is_main:
        write_json(directory / "alone.json", report(Layout(make("experts", seed=0)), directory / "alone"))
    layout = Layout(make("experts", seed=0), ParallelConfig(pipeline=2, schedule="interleaved"), world)
    own = report(layout, directory / f"of {world.rank}")
    trials: list[tuple[Recompute, Schedule]] = [
        ("none", "zero_bubble"),
        ("block", "zero_bubble"),
        ("selective", "interleaved"),
    ]
    for how, schedule in trials:
        layout = Layout(make("experts", seed=0), ParallelConfig(pipeline=2, schedule=schedule), world)
        layout.recompute(how)
        updater = make_updater(layout, "experts")
        rows, path = rows_of(1).rows(slice(3)), directory / f"of {world.rank}" / f"{how} {schedule}.json"
        own[f"flops of {how}"] = settle_workload("fp32", updater.rehearse, rows, path, layout).flops_per_token
        own[how] = [update(updater, step, size=2).gradient_norm for step in (1, 2)]
    for schedule in ("gpipe", "1f1b", "interleaved", "zero_bubble"):
        gradients_when_sums_begin(world, schedule)
    write_json(directory / f"{world.rank}.json", own)


def test_few_rows_and_what_each_process_holds(tmp_path: Path) -> None:
    together(2, learn_in_pipeline, tmp_path)
    reports = [read_json(tmp_path / f"{rank}.json") for rank in range(2)]
    expected = read_json(tmp_path / "alone.json")
    reports = [read_json(tmp_path / f"{rank}.json") for rank in range(2)]
    twice = make("experts", seed=0).embed.weight.numel()
    assert sum(one["parameters"] for one in reports) == expected["parameters"] + twice
    assert max(one["parameters"] for one in reports) < 0.55 * expected["parameters"]
    for one in reports:
        assert one["flops"] == one["flops of none"] == expected["flops"]
        assert one["updates"] == [pytest.approx(update, rel=1e-5) for update in expected["updates"]]
        assert one["bf16"] == pytest.approx(expected["bf16"], rel=1e-3)
        assert one["block"] == pytest.approx(one["none"], rel=1e-6)
        assert one["selective"] == pytest.approx(one["none"], rel=1e-6)


def test_what_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(UsageError, match="activation_mb"):
        loop_config(recompute="block", activation_mb=1, parallel={"pipeline": 2})
    with pytest.raises(UsageError, match="selective"):
        loop_config(recompute="selective", parallel={"pipeline": 2, "schedule": "zero_bubble"})
