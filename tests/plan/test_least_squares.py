from __future__ import annotations

import numpy as np
import pytest

from tallow.plan.least_squares import Array, minimize

PLACES_R = np.linspace(0, 2, 12)


def line(parameters_SP: Array) -> tuple[Array, Array]:
    slopes_RP = np.column_stack([np.ones_like(PLACES_R), PLACES_R])
    return parameters_SP @ slopes_RP.T, np.broadcast_to(slopes_RP, (len(parameters_SP), *slopes_RP.shape))


def curve(parameters_SP: Array) -> tuple[Array, Array]:
    a_S1, b_S1 = parameters_SP[:, :1], parameters_SP[:, 1:]
    decay_SR = np.exp(-b_S1 * PLACES_R)
    return a_S1 * decay_SR, np.stack([decay_SR, -a_S1 * PLACES_R * decay_SR], -1)


def test_each_problem_has_its_own_minimum() -> None:
    truth_SP = np.array([[1.0, 2.0], [-3.0, 0.5]])
    found = minimize(line, np.zeros((2, 2)), line(truth_SP)[0], np.full(12, np.inf))
    assert found.parameters_SP == pytest.approx(truth_SP, abs=1e-6)
    assert found.cost_S == pytest.approx([0, 0], abs=1e-10)


def test_a_curve_is_found_from_afar() -> None:
    truth_SP = np.array([[3.0, 1.3]])
    found = minimize(curve, np.array([[0.5, 0.1]]), curve(truth_SP)[0], np.full(12, np.inf))
    assert found.parameters_SP == pytest.approx(truth_SP, abs=1e-5)


def test_an_outlier_counts_little() -> None:
    targets_SR = line(np.array([[1.0, 2.0]]))[0].copy()
    targets_SR[0, 5] += 100
    robust = minimize(line, np.zeros((1, 2)), targets_SR, np.full(12, 0.01))
    squares = minimize(line, np.zeros((1, 2)), targets_SR, np.full(12, np.inf))
    assert robust.parameters_SP == pytest.approx(np.array([[1.0, 2.0]]), abs=0.01)
    assert abs(squares.parameters_SP[0, 0] - 1) > 5
    expected = 0.01 * (100 - 0.005)
    assert robust.cost_S == pytest.approx([expected], rel=1e-3)
