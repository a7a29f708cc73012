"""Gradients that travel as products of thin matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.parallel.layouts import KINDS, micro_batches, rows_of, together
from tests.parallel.layouts import ROWS as BATCH
from tests.train.toys import loop_config
from torch import nn

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.skeletons import new_model
from tallow.objectives.causal import causal
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.compressed_sum import EXACT_ROUNDS, CompressedSum
from tallow.train.update import Updater

ROWS, COLUMNS, ROUNDS, STEPS = 48, 32, 30, 20


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


@pytest.mark.parametrize("other", [{"zero": 1}, {"pipeline": 2}])
def test_what_is_divided_cannot_be_compressed(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs whole gradients"):
        ParallelConfig.model_validate({"compress": "powersgd", **other})
