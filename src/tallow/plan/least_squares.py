"""Many small robust least-squares problems at once, by damped Gauss–Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ITERATIONS = 200
TOLERANCE = 1e-8
LARGEST_DAMPING = 1e10
FLOOR = 1e-12


class Solutions(NamedTuple):
    """The minimum that each problem's descent has found: parameters S P, and their cost S."""

    parameters_SP: Array
    cost_S: Array


def minimize(
    residuals: Callable[[Array], tuple[Array, Array]], start_SP: Array, targets_SR: Array, delta_R: Array
) -> Solutions:
    """Minimize Huber's loss of `residuals(parameters) - targets`, for S problems side by side.

    Each step is Levenberg–Marquardt's on squares that are weighted so that their gradient is that of Huber's loss.

    Args:
        residuals: From parameters S P to values S R and their derivatives S R P.
        start_SP: Where each descent begins.
        targets_SR: What the values should be.
        delta_R: From where on a residual counts by its size instead of its square.
    """
    parameters_SP = start_SP.copy()
    damping_S = np.full(len(start_SP), 1e-3)
    values_SR, slopes_SRP = residuals(parameters_SP)
    error_SR = values_SR - targets_SR
    cost_S = _huber(error_SR, delta_R)
    for _ in range(ITERATIONS):
        weight_SR = 1 / np.maximum(1.0, np.abs(error_SR) / delta_R)
        normal_SPP = np.einsum("srp,sr,srq->spq", slopes_SRP, weight_SR, slopes_SRP)
        gradient_SP = np.einsum("srp,sr,sr->sp", slopes_SRP, weight_SR, error_SR)
        # a parameter that nothing depends on any more, as E where it has become 0, must not make this singular
        ridge_SPP = damping_S[:, None, None] * (normal_SPP + FLOOR) * np.eye(start_SP.shape[1])
        step_SP = np.linalg.solve(normal_SPP + ridge_SPP, gradient_SP[..., None])[..., 0]
        tried_SP = parameters_SP - step_SP
        values_SR, tried_slopes_SRP = residuals(tried_SP)
        tried_error_SR = values_SR - targets_SR
        tried_cost_S = _huber(tried_error_SR, delta_R)
        better_S = tried_cost_S < cost_S
        gain_S = np.where(better_S, cost_S - tried_cost_S, 0.0)
        parameters_SP = np.where(better_S[:, None], tried_SP, parameters_SP)
        error_SR = np.where(better_S[:, None], tried_error_SR, error_SR)
        slopes_SRP = np.where(better_S[:, None, None], tried_slopes_SRP, slopes_SRP)
        settled_S = np.where(better_S, gain_S <= TOLERANCE * cost_S, damping_S >= LARGEST_DAMPING)
        cost_S = np.where(better_S, tried_cost_S, cost_S)
        damping_S = np.clip(np.where(better_S, damping_S / 5, damping_S * 4), 1e-12, LARGEST_DAMPING)
        if settled_S.all():
            break
    return Solutions(parameters_SP, cost_S)


def _huber(error_SR: Array, delta_R: Array) -> Array:
    """Huber's loss, summed over R: S."""
    size_SR = np.abs(error_SR)
    inside_SR = np.minimum(size_SR, delta_R)
    return (inside_SR * (size_SR - inside_SR / 2)).sum(1)
