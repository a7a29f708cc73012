"""Which small runs to do for a law of scale, within a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tallow.errors import UsageError
from tallow.plan.budget import MAX_EPOCHS, Speed
from tallow.plan.sizes import format_size

SIZES = 4
# the largest size over the smallest: more tells more of the exponent, less is too little to tell it from noise
SPAN, MIN_SPAN = 8.0, 2.5
RATIOS = (5, 15, 45, 135)
"""Tokens for each parameter."""
DEAREST_RATIO = 15
"""That of the largest model; smaller ones get as many tokens as cost as much."""
RUN_S = 1.5
"""What a run takes besides its steps: to begin, to score held-out text, to save."""
TUNED_SIZES = 2
TUNING_RUNS = 3
"""More runs at each of these, with other learning rates."""


class Rung(NamedTuple):
    """A run to do: parameters asked for, and tokens."""

    size: int
    tokens: int


def rungs(largest: float, smallest: float, unique: float) -> list[Rung]:
    """Sizes and budgets of a ladder whose largest model has so many parameters, the cheapest first.

    Args:
        smallest: Parameters below which there is no model.
        unique: Different tokens that there are to train on; a run sees them four times at most.
    """
    span = min(SPAN, largest / smallest)
    sizes = np.geomspace(largest / span, largest, SIZES).tolist()
    dearest = DEAREST_RATIO * largest**2
    found = [
        Rung(round(size), round(ratio * size))
        for size in sizes
        for ratio in RATIOS
        if ratio * size**2 <= 1.001 * dearest and ratio * size <= MAX_EPOCHS * unique
    ]
    return sorted(found, key=lambda rung: rung.size * rung.tokens)


def tuned(ladder: Sequence[Rung]) -> list[Rung]:
    """The rungs at which learning rates are tried: of the smallest sizes, those nearest to 15 tokens a parameter."""
    sizes = sorted({rung.size for rung in ladder})[:TUNED_SIZES]
    return [
        min((rung for rung in ladder if rung.size == size), key=lambda rung: abs(rung.tokens - DEAREST_RATIO * size))
        for size in sizes
    ]


def ladder_seconds(ladder: Sequence[Rung], speed: Speed) -> float:
    """What a ladder takes with the runs that tune its learning rate."""
    done = [*ladder, *(rung for rung in tuned(ladder) for _ in range(TUNING_RUNS))]
    return sum(RUN_S + speed.seconds(rung.size, rung.tokens) for rung in done)


def plan_ladder(seconds: float, speed: Speed, smallest: float, unique: float) -> list[Rung]:
    """The ladder with the largest models that fits into a time, and whose budgets the text allows.

    Raises:
        UsageError: The time or the text is too little for any.
    """
    require_text(smallest, unique)
    low, high = MIN_SPAN * smallest, MAX_EPOCHS * unique / RATIOS[0]
    least = ladder_seconds(rungs(low, smallest, unique), speed)
    if least > seconds:
        raise UsageError(
            f"{seconds / 60:.3g} minutes are too few: the smallest runs that tell something take about "
            f"{least / 60:.2g} here",
            f"allow --minutes {np.ceil(least / 60):.0f}, or train a tokenizer with a smaller vocabulary",
        )
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        fits = ladder_seconds(rungs(middle, smallest, unique), speed) <= seconds
        low, high = (middle, high) if fits else (low, middle)
    return rungs(low, smallest, unique)


def require_text(smallest: float, unique: float) -> None:
    """See to it that there is text enough for a ladder.

    Raises:
        UsageError: There is not.
    """
    least = MIN_SPAN * smallest * RATIOS[0] / MAX_EPOCHS
    if unique < least:
        raise UsageError(
            f"{format_size(unique)} tokens of text are too few for small runs with this vocabulary",
            f"prepare at least {format_size(least)} tokens, or train a smaller tokenizer",
        )
