"""Gradients that travel as products of thin matrices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.parallel.layouts import KINDS, STEPS, micro_batches, rows_of, together
from tests.parallel.layouts import ROWS as BATCH
from tests.train.toys import loop_config
from torch import nn

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.skeletons import new_model
from tallow.objectives.causal import causal
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.compressed_sum import EXACT_ROUNDS, CompressedSum
from tallow.train.checkpoint import Checkpoints
from tallow.train.counters import Counters
from tallow.train.update import Updater

ROWS, COLUMNS, ROUNDS = 48, 32, 30


def gradients(rank: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A process's gradients of a matrix, of this rank, and of a vector."""
    generator = torch.Generator().manual_seed(rank + 1)
    # both processes' columns lie in one space, so that the sum has this rank too
    space = torch.randn(ROWS, inner, generator=torch.Generator().manual_seed(0))
    return space @ torch.randn(inner, COLUMNS, generator=generator), torch.randn(7, generator=generator)


def learned(layout: Layout) -> list[float]:
    """Loss of each update of a model as models begin, at a rate at which it learns a good part in so few."""
    updater = Updater(layout, causal, loop_config(learning_rate=3e-3, clip_norm=0.5))
    rows = layout.reader.share(range(BATCH))
    batches = [micro_batches(rows_of(step), rows, 4) for step in range(1, STEPS + 1)]
    return [updater.update(step, batch, 3e-3, "fp32").loss for step, batch in enumerate(batches, 1)]


@contextmanager
def counting_sums() -> Iterator[list[int]]:
    """How many sums between processes have been begun."""
    counted = [0]
    plain = dist.all_reduce

    def all_reduce(*arguments: Any, **named: Any) -> Any:
        counted[0] += 1
        return plain(*arguments, **named)

    dist.all_reduce = all_reduce
    yield counted
    dist.all_reduce = plain


def sum_compressed(world: World, directory: Path) -> None:
    matrix, vector = nn.Parameter(torch.zeros(ROWS, COLUMNS)), nn.Parameter(torch.zeros(7))
    found: dict[str, list[float]] = {}
    for name, inner in (("low", 2), ("full", COLUMNS)):
        compressed, drift = CompressedSum([matrix, vector], world, rank=2), torch.zeros(ROWS, COLUMNS)
        whole = [first + second for first, second in zip(gradients(0, inner), gradients(1, inner), strict=True)]
        errors = []
        for _ in range(ROUNDS):
            matrix.grad, vector.grad = gradients(world.rank, inner)
            with compressed.in_last_backward():
                pass
            torch.testing.assert_close(vector.grad, whole[1])
            drift += matrix.grad - whole[0]
            errors.append(((matrix.grad - whole[0]).norm() / whole[0].norm()).item())
        found |= {name: errors, f"{name} drift": [(drift.norm() / whole[0].norm()).item()]}
        found[f"{name} saving"] = [compressed.saving]
    for single in (matrix, vector):  # buckets without one of the two kinds
        exchange = CompressedSum([single], world, rank=COLUMNS)
        for _ in range(EXACT_ROUNDS + 1):
            single.grad = torch.ones_like(single)
            with exchange.in_last_backward():
                pass
        torch.testing.assert_close(single.grad, torch.full_like(single, 2.0))
    early = CompressedSum([matrix, vector], world, rank=2)
    for number in range(EXACT_ROUNDS + 2):
        matrix.grad, vector.grad = None, None
        with counting_sums() as counted, early.in_last_backward():
            (matrix.sum() + vector.sum()).backward()
            assert counted == [1], "the first message is under way before the pass is left"
        assert counted == [1 if number < EXACT_ROUNDS else 2]
    config = ParallelConfig(compress="powersgd", compress_rank=4)
    found["loss"] = learned(Layout(new_model(KINDS["decoder"], 0), config, world))
    if world.is_main:
        write_json(directory / "found.json", found)


def test_little_is_sent_and_nothing_is_lost_for_ever(tmp_path: Path) -> None:
    together(2, sum_compressed, tmp_path)
    found = read_json(tmp_path / "found.json")
    assert max(found["low"]) < 1e-4, "what has this rank comes whole"
    assert max(found["full"][:EXACT_ROUNDS]) < 1e-6
    assert found["full"][EXACT_ROUNDS] > 0.3
    # without feedback the drift would be the sum of all errors: some ten times the gradient
    assert found["full drift"][0] < 0.5 * sum(found["full"][EXACT_ROUNDS:])
    sent = 2 * (ROWS + COLUMNS) + 7
    assert found["full saving"][0] == pytest.approx((ROWS * COLUMNS + 7) / sent, rel=1e-6)

    exact = learned(Layout(new_model(KINDS["decoder"], 0)))
    assert exact[-1] < exact[0] - 0.5
    assert found["loss"][:EXACT_ROUNDS] == pytest.approx(exact[:EXACT_ROUNDS], abs=1e-5)
    assert found["loss"][-1] == pytest.approx(exact[-1], abs=0.03)
    assert found["loss"][-1] != pytest.approx(exact[-1], abs=1e-5)


STEPS_TO_STOP_AT = (1, 2, 5)


def compressing(world: World, seed: int, tensor: int = 1) -> Layout:
    config = ParallelConfig(compress="powersgd", compress_rank=2, tensor=tensor)
    return Layout(new_model(KINDS["decoder"], seed), config, world)


def go_on(world: World, directory: Path, name: str, until: int, tensor: int = 1) -> None:
    """Go on from what the directory holds, as one run and as one that begins anew after each of some steps."""
    losses: dict[str, list[float]] = {}
    for way in ("whole", "parts"):
        stops = (*STEPS_TO_STOP_AT, until) if way == "parts" else (until,)
        losses[way] = []
        for stop in stops:
            layout = compressing(world, world.rank + len(losses[way]), tensor)
            updater = Updater(layout, causal, loop_config(learning_rate=3e-3, clip_norm=0.5))
            kept = Checkpoints(
                directory / way,
                updater.parameters,
                updater.optimizer,
                {},
                keep=99,
                mesh=layout.mesh,
                compressed=layout.compressed,
            )
            step = kept.restore()[0]
            rows = layout.reader.share(range(BATCH))
            updater.rehearse(micro_batches(rows_of(0), rows, 4)[0], "fp32")  # which leaves no trace
            while step < stop:
                step += 1
                losses[way].append(updater.update(step, micro_batches(rows_of(step), rows, 4), 3e-3, "fp32").loss)
                if step in (*STEPS_TO_STOP_AT, until):
                    kept.begin(step, Counters())
                    kept.finish()
    if world.is_main:
        write_json(directory / f"{name}.json", losses)


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_was_left_out_survives_a_stop(tmp_path: Path, tensor: int) -> None:
    together(2 * tensor, go_on, tmp_path, "two", 12, tensor)
    losses = read_json(tmp_path / "two.json")
    assert losses["parts"] == losses["whole"]
    assert losses["whole"][-1] < losses["whole"][0] - 0.2


def test_what_was_left_out_goes_to_any_number_of_processes(tmp_path: Path) -> None:
    together(2, go_on, tmp_path, "two", 12)
    expected = read_json(tmp_path / "two.json")["whole"][5:]
    for way in ("whole", "parts"):
        shutil.rmtree(tmp_path / way / "step-00000012")
    together(4, go_on, tmp_path, "four", 12)
    found = read_json(tmp_path / "four.json")["whole"]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("other", [{"zero": 1}, {"pipeline": 2}])
def test_what_is_divided_cannot_be_compressed(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs whole gradients"):
        ParallelConfig.model_validate({"compress": "powersgd", **other})
