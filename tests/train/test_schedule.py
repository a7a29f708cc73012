from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import UsageError
from tallow.train.config import LoopConfig
from tallow.train.schedule import SCHEDULES, learning_rate


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(min_value=1, max_value=300),
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0.01, max_value=1),
    st.floats(min_value=0, max_value=1),
)
def test_rises_to_the_largest_value_then_falls_to_the_smallest(
    schedule: str, steps: int, warmup: float, decay: float, ratio: float
) -> None:
    config = LoopConfig.model_validate(
        {
            "schedule": schedule,
            "learning_rate": 2.0,
            "warmup": warmup,
            "decay": decay,
            "min_learning_rate_ratio": ratio,
        }
    )
    rates = [learning_rate(step, steps, config) for step in range(1, steps + 1)]
    top = round(warmup * steps)
    assert all(0 < rate <= 2.0 or rate == pytest.approx(2.0 * ratio) for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if top > 0:
        assert rates[top - 1] == 2.0
    assert min(rates[top:], default=2.0) >= 2.0 * ratio - 1e-12
    if top < steps and schedule not in ("inverse_sqrt", "constant"):
        assert rates[-1] == pytest.approx(2.0 * ratio)


def rates(schedule: str, **settings: object) -> list[float]:
    config = LoopConfig.model_validate({"schedule": schedule, "learning_rate": 1.0, "warmup": 0.0, **settings})
    return [learning_rate(step, 100, config) for step in (1, 50, 75, 80, 90, 100)]


def test_shapes() -> None:
    assert rates("cosine", min_learning_rate_ratio=0.2)[1] == pytest.approx(0.6)
    assert rates("linear", min_learning_rate_ratio=0.0)[2] == pytest.approx(0.25)
    stable = rates("wsd", decay=0.2, min_learning_rate_ratio=0.0)
    assert stable[:4] == pytest.approx([1, 1, 1, 1])
    assert stable[4:] == pytest.approx([0.5, 0])


def test_constant_stays() -> None:
    assert rates("constant", min_learning_rate_ratio=0.0) == [1] * 6


def test_inverse_square_root_is_that_of_the_transformer() -> None:
    """Both of its branches: in proportion to min(step ** -0.5, step * warmup ** -1.5)."""
    config = LoopConfig(schedule="inverse_sqrt", learning_rate=1.0, warmup=0.25, min_learning_rate_ratio=0.0)
    for step in range(1, 65):
        assert learning_rate(step, 64, config) == pytest.approx(4 * min(step**-0.5, step * 16**-1.5))
    floored = config.model_copy(update={"min_learning_rate_ratio": 0.6})
    assert learning_rate(64, 64, floored) == 0.6


def test_an_optimizer_that_averages_has_no_falling_schedule() -> None:
    config = LoopConfig.model_validate({"optimizer": "schedule_free", "learning_rate": 1.0, "warmup": 0.1})
    assert [learning_rate(step, 100, config) for step in (5, 50, 100)] == [0.5, 1.0, 1.0]
    with pytest.raises(UsageError, match="in place of a falling"):
        LoopConfig.model_validate({"optimizer": "schedule_free", "schedule": "cosine"})
