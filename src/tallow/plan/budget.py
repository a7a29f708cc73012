"""What time and text allow: tokens that are seen again, seconds of a run, and the best model for so many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import NonNegativeFloat

from tallow.plan.loss_law import LossLaw
from tallow.recipe import Section

# repetitions after which a text has given 63 % of what it can give by being seen again (2305.16264, section 5)
HALF_LIFE = 15.39
MAX_EPOCHS = 4
"""Epochs that are nearly as good as new text (2305.16264, section 6); more are not planned."""
SIZES_A_DECADE = 200


def effective_tokens(tokens: float, unique: float) -> float:
    """What tokens are worth if only `unique` of them are different ones (arXiv 2305.16264, equation 5)."""
    if tokens <= unique:
        return tokens
    return unique * (1 + HALF_LIFE * (1 - math.exp((1 - tokens / unique) / HALF_LIFE)))


class Speed(Section):
    """Seconds that a token takes in training: some in any model, and some for each parameter."""

    token_s: NonNegativeFloat
    parameter_s: NonNegativeFloat

    def seconds(self, parameters: float, tokens: float) -> float:
        return tokens * (self.token_s + self.parameter_s * parameters)


def fit_speed(parameters: Sequence[float], tokens_per_s: Sequence[float]) -> Speed:
    """The speed of models from those of some, by least squares of relative errors."""
    times = 1 / np.array(tokens_per_s)
    columns = np.column_stack([np.ones(len(times)), np.array(parameters, dtype=float)]) / times[:, None]
    base, slope = np.linalg.lstsq(columns, np.ones(len(times)))[0] if len(times) > 1 else (0.0, -1.0)
    if slope <= 0 or base < 0:  # one size, or noise: in proportion to the parameters
        base, slope = 0.0, 1 / np.mean(columns[:, 1])
    return Speed(token_s=float(base), parameter_s=float(slope))


class Plan(NamedTuple):
    """A run: parameters, tokens, seconds, and the loss that the law predicts."""

    parameters: float
    tokens: float
    seconds: float
    loss: float


def best_for_time(law: LossLaw, speed: Speed, seconds: float, unique: float, smallest: float) -> Plan:
    """The model that has the least loss after so many seconds of training.

    Where the text is used up before (`MAX_EPOCHS`), the run ends before.

    Args:
        unique: Different tokens that there are to train on.
        smallest: Parameters of the smallest model that can be built.
    """
    per_token = speed.token_s + speed.parameter_s * smallest
    largest = max(smallest, seconds / smallest / speed.parameter_s)
    decades = math.log10(largest / smallest)
    best: Plan | None = None
    for parameters in np.geomspace(smallest, largest, 2 + round(decades * SIZES_A_DECADE)).tolist():
        per_token = speed.token_s + speed.parameter_s * parameters
        tokens = min(seconds / per_token, MAX_EPOCHS * unique)
        loss = law.loss(parameters, effective_tokens(tokens, unique))
        if best is None or loss < best.loss:
            best = Plan(parameters, tokens, tokens * per_token, loss)
    assert best is not None
    return best
