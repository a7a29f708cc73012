from __future__ import annotations

import pytest

from tallow.plan.budget import MAX_EPOCHS, Speed, best_for_time, effective_tokens, fit_speed
from tallow.plan.loss_law import LossLaw

LAW = LossLaw(
    irreducible=1.8, parameters_factor=480, parameters_exponent=0.35, tokens_factor=2000, tokens_exponent=0.37
)


def test_tokens_are_worth_less_each_time() -> None:
    values = [effective_tokens(tokens, 100) for tokens in (50, 100, 200, 400, 100_000)]
    assert values[:2] == [50, 100]
    assert values[2] == pytest.approx(196.8, abs=0.1)
    assert 350 < values[3] < 400
    assert values[4] == pytest.approx(100 * (1 + 15.39), rel=1e-3)


def test_a_speed_is_what_a_token_and_a_parameter_take() -> None:
    truth = Speed(token_s=1e-5, parameter_s=1e-11)
    sizes = [1e5, 1e6, 1e7]
    found = fit_speed(sizes, [1 / truth.seconds(size, 1) for size in sizes])
    assert found.token_s == pytest.approx(1e-5)
    assert found.parameter_s == pytest.approx(1e-11)
    assert found.seconds(2e6, 1e6) == pytest.approx(30)


@pytest.mark.parametrize(
    ("sizes", "speeds"), [([1e6], [1000.0]), ([1e6, 2e6], [1000.0, 1000.0]), ([1e6, 2e6], [4e3, 1e3])]
)
def test_a_speed_that_says_nothing_of_a_token_goes_by_parameters(sizes: list[float], speeds: list[float]) -> None:
    found = fit_speed(sizes, speeds)
    assert found.parameter_s > 0
    assert found.token_s >= 0
    assert found.seconds(sizes[0], 1) == pytest.approx(1 / speeds[0], rel=0.8)


def test_the_best_for_a_time_is_that_for_its_operations() -> None:
    flops_per_s, seconds = 1e12, 3600.0
    plan = best_for_time(LAW, Speed(token_s=0, parameter_s=6 / flops_per_s), seconds, unique=1e18, smallest=1e4)
    best = LAW.best_parameters(flops_per_s * seconds)
    assert plan.parameters == pytest.approx(best, rel=0.02)
    assert plan.loss == pytest.approx(LAW.loss(best, LAW.best_tokens(best)), rel=1e-4)
    assert plan.seconds == pytest.approx(seconds)


def test_time_that_goes_to_tokens_makes_a_larger_model_better() -> None:
    lean = best_for_time(LAW, Speed(token_s=0, parameter_s=1e-11), 3600, 1e18, 1e4)
    heavy = best_for_time(LAW, Speed(token_s=1e-4, parameter_s=1e-11), 3600, 1e18, 1e4)
    assert heavy.parameters > lean.parameters
    assert heavy.loss > lean.loss


def test_little_text_makes_a_larger_model_and_ends_the_run() -> None:
    speed = Speed(token_s=0, parameter_s=1e-12)
    free = best_for_time(LAW, speed, 3600, 1e18, 1e4)
    short = best_for_time(LAW, speed, 3600, free.tokens / 100, 1e4)
    assert short.tokens <= MAX_EPOCHS * free.tokens / 100
    assert short.parameters > free.parameters
    assert short.loss > free.loss
