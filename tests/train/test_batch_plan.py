from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import UsageError
from tallow.train.batch_plan import BatchPlan, plan_batches
from tallow.train.config import BatchRamp, LoopConfig


def loop(batch_size: int, start: int | None, share: float = 0.1, steps: int | None = None) -> LoopConfig:
    ramp = None if start is None else BatchRamp(start=min(start, batch_size), share=share)
    return LoopConfig(batch_size=batch_size, batch_ramp=ramp, steps=steps)


@given(
    rows=st.integers(1, 3000),
    batch_size=st.integers(1, 64),
    start=st.none() | st.integers(1, 64),
    share=st.floats(0.01, 1),
)
def test_each_row_is_taken_once_by_batches_that_never_shrink(
    rows: int, batch_size: int, start: int | None, share: float
) -> None:
    config = loop(batch_size, start, share)
    plan = BatchPlan(rows, config)
    batches = [plan.rows(step) for step in range(plan.steps + 2)]
    assert list(itertools.chain(*batches)) == list(range(batches[-1].stop))
    sizes = [len(batch) for batch in batches]
    assert sizes == sorted(sizes)
    assert sizes[0] == (config.batch_ramp.start if config.batch_ramp else batch_size)
    assert sizes[-1] == batch_size
    assert batches[plan.steps - 1].start < rows <= batches[plan.steps - 1].stop


@given(
    steps=st.integers(1, 200),
    batch_size=st.integers(1, 64),
    start=st.none() | st.integers(1, 64),
    share=st.floats(0.01, 1),
)
def test_steps_can_be_given_instead(steps: int, batch_size: int, start: int | None, share: float) -> None:
    plan = plan_batches(loop(batch_size, start, share, steps), rows=1)
    assert plan.steps == steps


@given(
    rows=st.integers(1, 20_000),
    batch_size=st.integers(1, 100),
    start=st.integers(1, 100),
    share=st.floats(1e-6, 1),
)
def test_each_batch_is_as_large_as_the_line_says(rows: int, batch_size: int, start: int, share: float) -> None:
    start = min(start, batch_size)
    plan, growing_rows = BatchPlan(rows, loop(batch_size, start, share)), share * rows
    row = step = 0
    while row < growing_rows:
        size = int(start + (batch_size - start) * row / growing_rows) // start * start
        assert plan.rows(step) == range(row, row + size)
        row, step = row + size, step + 1
    assert plan.rows(step) == range(row, row + batch_size)


def test_a_billion_steps_take_no_time_to_plan() -> None:
    began = time.process_time()
    plan = plan_batches(loop(64, 1, 0.5, steps=10**9), rows=1)
    assert plan.steps == 10**9
    assert time.process_time() - began < 1


def test_they_grow_over_the_share_that_is_asked_for() -> None:
    plan = BatchPlan(10_000, loop(80, 10, 0.2))
    sizes = {plan.rows(step).start: len(plan.rows(step)) for step in range(plan.steps)}
    assert all(size == 80 for first, size in sizes.items() if first >= 2000)
    assert all(size < 80 for first, size in sizes.items() if first < 2000)
    assert next(size for first, size in sizes.items() if first >= 1000) == 40  # half of the way from 10 to 80 is 45


def test_batches_cannot_grow_downwards() -> None:
    with pytest.raises(UsageError, match="from 9 to 8"):
        LoopConfig(batch_size=8, batch_ramp=BatchRamp(start=9))
