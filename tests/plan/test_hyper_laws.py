from __future__ import annotations

import numpy as np
import pytest

from tallow.plan.hyper_laws import BATCH_TOKENS, LEARNING_RATE, Optimum, PowerLaw, find_optimum, fit_power_law


def test_the_defaults_are_the_published_figures() -> None:
    """Step Law's figures for a billion parameters and a hundred billion tokens (arXiv 2503.04715)."""
    assert LEARNING_RATE.value(1e9, 1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert BATCH_TOKENS.value(1e9, 1e11) == BATCH_TOKENS.value(1e6, 1e11) == pytest.approx(0.58 * 1e11**0.571)


def valley(rates: list[float], best: float) -> list[float]:
    return [3 + 0.1 * float(np.log(rate / best)) ** 2 for rate in rates]


@pytest.mark.parametrize("best", [0.9e-3, 2.5e-3, 1e-2])
def test_an_optimum_lies_between_the_values(best: float) -> None:
    rates = [1e-3, 4e-3, 2e-3, 8e-3]
    assert find_optimum(rates, valley(rates, best)) == pytest.approx(best, rel=1e-6)


def test_an_optimum_far_outside_is_one_step_beyond() -> None:
    rates = [1e-3, 2e-3, 4e-3]
    assert find_optimum(rates, valley(rates, 1.0)) == pytest.approx(8e-3)


def test_a_hill_has_its_lowest_end() -> None:
    assert find_optimum([1e-3, 2e-3, 4e-3], [3.0, 3.5, 2.9]) == pytest.approx(4e-3)


def test_two_values_have_no_optimum() -> None:
    assert find_optimum([1e-3, 2e-3, 2e-3], [3.0, 2.9, 2.8]) is None


def test_without_optima_the_default_stays() -> None:
    assert fit_power_law([], LEARNING_RATE) == LEARNING_RATE


def test_one_optimum_moves_the_factor_alone() -> None:
    law = fit_power_law([Optimum(1e6, 2e7, LEARNING_RATE.value(1e6, 2e7) / 4)], LEARNING_RATE)
    assert law.value(1e6, 2e7) / LEARNING_RATE.value(1e6, 2e7) == pytest.approx(1 / 4, rel=0.1)
    assert law.inner_exponent == pytest.approx(LEARNING_RATE.inner_exponent)
    assert law.tokens_exponent == pytest.approx(LEARNING_RATE.tokens_exponent)


def test_many_optima_move_the_exponents() -> None:
    truth = PowerLaw(factor=0.5, inner_exponent=-0.4, tokens_exponent=0.1, source="a test")
    places = [(inner, tokens) for inner in np.geomspace(1e5, 1e9, 8) for tokens in np.geomspace(1e7, 1e11, 8)]
    law = fit_power_law([Optimum(*place, truth.value(*place)) for place in places], LEARNING_RATE)
    assert law.inner_exponent == pytest.approx(-0.4, abs=0.01)
    assert law.tokens_exponent == pytest.approx(0.1, abs=0.01)
    assert law.value(1e7, 1e9) == pytest.approx(truth.value(1e7, 1e9), rel=0.05)


def test_a_law_without_parameters_stays_without() -> None:
    law = fit_power_law([Optimum(1e6, 1e8, 5e4), Optimum(1e8, 1e8, 9e4), Optimum(1e8, 1e9, 2e5)], BATCH_TOKENS)
    assert law.inner_exponent == 0
