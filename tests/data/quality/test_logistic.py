from __future__ import annotations

import numpy as np
import pytest

from tallow.data.quality.logistic import fit_logistic, sigmoid
from tallow.kernels.text.hashed_grams import Features


def dense_features(rows: np.ndarray) -> Features:
    count, width = rows.shape
    return Features(
        np.arange(0, count * width + 1, width),
        np.tile(np.arange(width, dtype=np.uint32), count),
        rows.astype(np.float32).ravel(),
    )


def test_a_known_optimum() -> None:
    """One feature that three of four good and one of four bad examples have: the log odds of each cell are ±ln 3."""
    rows, labels = np.array([[1.0]] * 3 + [[0.0]] * 4 + [[1.0]]), np.array([True] * 4 + [False] * 4)
    fitted = fit_logistic(dense_features(rows), labels, 1, 1e-12, 100, 1e-9)
    assert fitted.weights[0] == pytest.approx(2 * np.log(3), rel=1e-5)
    assert fitted.bias == pytest.approx(-np.log(3), rel=1e-5)


def test_the_gradient_vanishes_and_classes_weigh_the_same() -> None:
    generator = np.random.default_rng(0)
    rows, labels = generator.normal(size=(300, 5)), generator.random(300) < 0.1
    rows[labels] += 0.5
    fitted = fit_logistic(dense_features(rows), labels, 5, 1e-3, 200, 1e-8)
    assert fitted.gradient < 1e-8
    rows = rows.astype(np.float32).astype(np.float64)
    pulls = sigmoid(rows @ fitted.weights + fitted.bias) - labels
    shares = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    np.testing.assert_allclose((shares * pulls) @ rows + 1e-3 * fitted.weights, 0, atol=1e-7)
    assert (shares * pulls).sum() == pytest.approx(0, abs=1e-7)


def test_an_example_without_features_has_the_bias_alone() -> None:
    features = Features(np.array([0, 1, 1]), np.array([3], np.uint32), np.ones(1, np.float32))
    fitted = fit_logistic(features, np.array([True, False]), 8, 0.1, 100, 1e-9)
    assert fitted.weights[3] > 0
    assert fitted.bias == pytest.approx(-fitted.weights[3] / 2, rel=1e-5)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(over="raise"):
        values = sigmoid(np.array([-700.0, 0, 700]))
    np.testing.assert_allclose(values, [np.exp(-700.0), 0.5, 1])
