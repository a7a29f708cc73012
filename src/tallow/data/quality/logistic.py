"""Logistic regression on sparse vectors, to the one optimum that its loss has."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.text.hashed_grams import Features

Vector = npt.NDArray[np.float64]
MEMORY = 10
"""Steps from which the curvature is estimated."""


class Fitted(NamedTuple):
    """Weights, the bias, the loss, and the largest of the gradient's absolute values, after so many steps."""

    weights: Vector
    bias: float
    loss: float
    gradient: float
    steps: int


def fit_logistic(
    features: Features, labels: npt.NDArray[np.bool_], size: int, l2: float, most_steps: int, tolerance: float
) -> Fitted:
    """Weights of least loss, by L-BFGS ("Numerical optimization", Nocedal and Wright, algorithm 7.5) from zero.

    The loss is the mean of both classes' mean log losses, so that their sizes do not matter, plus `l2` / 2 times the
    squares of the weights (not of the bias). Sums are of one thread in a fixed order, so the same examples in the same
    order give the same bits.

    Args:
        features: Of N examples.
        labels: Whether each is good, N; both kinds are there.
        size: How many weights there are.
        l2: Of the regularization.
        most_steps, tolerance: It ends after so many steps, or where no part of the gradient is larger.
    """
    used, places = np.unique(features.places, return_inverse=True)  # the weights of others are zero at the optimum
    problem = _Problem(features._replace(places=places), labels, len(used), l2)
    point = np.zeros(len(used) + 1)
    loss, gradient = problem.loss(point)
    steps, pairs = 0, deque[tuple[Vector, Vector, float]](maxlen=MEMORY)
    while steps < most_steps and np.abs(gradient).max() > tolerance:
        direction = -_two_loops(gradient, pairs)
        slope = _dot(gradient, direction)
        length = 1.0 if pairs else 1.0 / max(1e-12, np.sqrt(_dot(gradient, gradient)))
        for _ in range(40):
            candidate = point + length * direction
            new_loss, new_gradient = problem.loss(candidate)
            if new_loss <= loss + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break  # the loss falls by less than it is rounded to
        change, turn = candidate - point, new_gradient - gradient
        curvature = _dot(change, turn)
        if curvature > 1e-20:
            pairs.append((change, turn, curvature))
        point, loss, gradient, steps = candidate, new_loss, new_gradient, steps + 1
    weights = np.zeros(size)
    weights[used] = point[:-1]
    return Fitted(weights, float(point[-1]), loss, float(np.abs(gradient).max()), steps)


class _Problem:
    def __init__(self, features: Features, labels: npt.NDArray[np.bool_], size: int, l2: float) -> None:
        counts = np.diff(features.offsets)
        self.examples = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.places, self.values, self.size, self.l2 = features.places, features.values, size, l2
        self.signs = np.where(labels, 1.0, -1.0)
        self.shares = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())

    def loss(self, point: Vector) -> tuple[float, Vector]:
        weights, bias = point[:-1], point[-1]
        products = np.bincount(self.examples, self.values * weights[self.places], len(self.signs)) + bias
        margins = self.signs * products
        loss = float((self.shares * np.logaddexp(0, -margins)).sum()) + 0.5 * self.l2 * _dot(weights, weights)
        pulls = -self.shares * self.signs * sigmoid(-margins)
        slopes = np.bincount(self.places, self.values * pulls[self.examples], self.size) + self.l2 * weights
        return loss, np.append(slopes, pulls.sum())


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _two_loops(gradient: Vector, pairs: deque[tuple[Vector, Vector, float]]) -> Vector:
    """The inverse of the estimated curvature times the gradient (algorithm 7.4)."""
    result, shares = gradient.copy(), list[float]()
    for change, turn, curvature in reversed(pairs):
        shares.append(_dot(change, result) / curvature)
        result -= shares[-1] * turn
    if pairs:
        _, turn, curvature = pairs[-1]
        result *= curvature / _dot(turn, turn)
    for (change, turn, curvature), share in zip(pairs, reversed(shares), strict=True):
        result += (share - _dot(turn, result) / curvature) * change
    return result


def _dot(a: Vector, b: Vector) -> float:
    return float((a * b).sum())  # BLAS's depends on its threads
