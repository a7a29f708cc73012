from __future__ import annotations

import pytest

from tallow.errors import UsageError
from tallow.plan.budget import MAX_EPOCHS, Speed
from tallow.plan.ladder import SIZES, ladder_seconds, plan_ladder, rungs, tuned
from tallow.plan.loss_law import MIN_RUNS

SPEED = Speed(token_s=1e-6, parameter_s=6e-11)


@pytest.mark.parametrize(("seconds", "smallest"), [(600.0, 3e4), (36000.0, 1e5), (1e6, 1e6)])
def test_a_ladder_fills_its_time(seconds: float, smallest: float) -> None:
    ladder = plan_ladder(seconds, SPEED, smallest, unique=1e12)
    assert 0.9 * seconds < ladder_seconds(ladder, SPEED) <= seconds
    sizes = {rung.size for rung in ladder}
    assert len(sizes) == SIZES
    assert min(sizes) >= 0.99 * smallest
    assert len(ladder) >= 2 * MIN_RUNS - 2
    assert all(len({rung.tokens for rung in ladder if rung.size == size}) >= 2 for size in sizes)


def test_budgets_stay_within_the_text() -> None:
    ladder = plan_ladder(1e5, SPEED, 1e5, unique=4e6)
    assert max(rung.tokens for rung in ladder) <= MAX_EPOCHS * 4e6


def test_the_cheapest_comes_first_and_the_dearest_costs_like_the_largest() -> None:
    ladder = rungs(8e6, 1e6, 1e12)
    costs = [rung.size * rung.tokens for rung in ladder]
    assert costs == sorted(costs)
    assert max(costs) == pytest.approx(15 * 8e6**2, rel=1e-6)


def test_rates_are_tried_at_the_two_smallest_sizes() -> None:
    ladder = rungs(8e6, 1e6, 1e12)
    assert [(rung.size, rung.tokens) for rung in tuned(ladder)] == [(1_000_000, 15_000_000), (2_000_000, 30_000_000)]


def test_too_little_time_says_how_much_it_takes() -> None:
    with pytest.raises(
        UsageError, match=r"1 minutes are too few: the smallest runs that tell something take about"
    ) as got:
        plan_ladder(60, SPEED, 3e5, unique=1e12)
    minutes = float(got.value.hint.split("--minutes ")[1].split(",")[0])
    assert plan_ladder(60 * minutes, SPEED, 3e5, unique=1e12)


def test_too_little_text_says_how_much_it_takes() -> None:
    with pytest.raises(UsageError, match="too few for small runs") as got:
        plan_ladder(1e5, SPEED, 3e5, unique=1e5)
    assert "938k tokens" in got.value.hint
