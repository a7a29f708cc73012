"""Learning rate and batch size as power laws of what is trained: published ones, or fitted where runs vary them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import PositiveFloat

from tallow.recipe import Section

# how far a published law may be off for other data: its factor (in e's), and each exponent
FACTOR_SPREAD, EXPONENT_SPREAD = 1.0, 0.1
# by how much (in e's) the best value of a few small runs misses the best value
OPTIMUM_NOISE = 0.2
MIN_VALUES = 3


class PowerLaw(Section):
    """factor · N^inner_exponent · D^tokens_exponent.

    Args:
        factor: The value at one parameter and one token.
        inner_exponent: Of N, the parameters that do not depend on the vocabulary.
        tokens_exponent: Of D, the tokens of the run.
        source: Where it comes from, in words.
    """

    factor: PositiveFloat
    inner_exponent: float
    tokens_exponent: float
    source: str

    def value(self, inner: float, tokens: float) -> float:
        return self.factor * inner**self.inner_exponent * tokens**self.tokens_exponent


STEP_LAW = "Step Law, arXiv 2503.04715, a default"
LEARNING_RATE = PowerLaw(factor=1.79, inner_exponent=-0.713, tokens_exponent=0.307, source=STEP_LAW)
"""The largest learning rate of AdamW, found on decoders of 60 million parameters and more (2503.04715, section 4)."""
BATCH_TOKENS = PowerLaw(factor=0.58, inner_exponent=0.0, tokens_exponent=0.571, source=STEP_LAW)
"""Tokens of a batch (the same)."""


class Optimum(NamedTuple):
    """The best value at one size and budget: parameters without the vocabulary's, tokens, the value."""

    inner: float
    tokens: float
    value: float


def find_optimum(values: Sequence[float], losses: Sequence[float]) -> float | None:
    """The value with the least loss, by a parabola over its logarithm through the best run and its neighbours.

    Where the best is the smallest or largest value tried, the parabola through the three that are nearest to it counts,
    but it may lead no farther than one step beyond. None if fewer than three values were tried.
    """
    order = np.argsort(values)
    logs, heights = np.log(np.array(values)[order]), np.array(losses)[order]
    if len(np.unique(logs)) < MIN_VALUES:
        return None
    best = int(np.clip(heights.argmin(), 1, len(logs) - 2))
    around = slice(best - 1, best + 2)
    curvature, slope, _ = np.polyfit(logs[around] - logs[best], heights[around], 2)
    low, high = 2 * logs[best - 1] - logs[best], 2 * logs[best + 1] - logs[best]
    if curvature <= 0:
        return float(np.exp(logs[heights.argmin()]))
    return float(np.exp(np.clip(logs[best] - slope / (2 * curvature), low, high)))


def fit_power_law(optima: Sequence[Optimum], default: PowerLaw) -> PowerLaw:
    """The law that the optima of one's own runs make of a published one.

    Least squares on logarithms, in which the published exponents count as a measurement of some uncertainty: few optima
    move the factor, many also the exponents.
    """
    if not optima:
        return default
    logs = np.log(np.array(optima))
    middle = logs.mean(0)
    design_RP = np.column_stack([np.ones(len(logs)), logs[:, :2] - middle[:2]]) / OPTIMUM_NOISE
    # where the tried values lie is where the factor is believed, not at one parameter and one token
    believed = np.array([np.log(default.value(*np.exp(middle[:2]))), default.inner_exponent, default.tokens_exponent])
    spread = np.array([FACTOR_SPREAD, EXPONENT_SPREAD, EXPONENT_SPREAD])
    spread[1:] *= [default.inner_exponent != 0, default.tokens_exponent != 0]
    free = spread > 0
    rows = np.vstack([design_RP[:, free], np.diag(1 / spread[free])])
    missed = np.concatenate([logs[:, 2] / OPTIMUM_NOISE - design_RP @ believed, np.zeros(free.sum())])
    found = believed.copy()
    found[free] += np.linalg.lstsq(rows, missed)[0]
    return PowerLaw(
        factor=float(np.exp(found[0] - found[1:] @ middle[:2])),
        inner_exponent=float(found[1]),
        tokens_exponent=float(found[2]),
        source=f"fitted to {len(optima)} optima, beginning with {default.source}",
    )
