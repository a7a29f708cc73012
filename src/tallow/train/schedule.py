"""Learning rates: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from tallow.train.config import LoopConfig


class Place(NamedTuple):
    """Where in a run an update is.

    Args:
        step: Counted from 1.
        warmup: The last step of the warm-up.
        steps: The last step of all.
    """

    step: int
    warmup: int
    steps: int

    @property
    def progress(self) -> float:
        """The share of the way after the warm-up."""
        return (self.step - self.warmup) / max(1, self.steps - self.warmup)


def learning_rate(step: int, steps: int, config: LoopConfig) -> float:
    """The learning rate of update `step`, counted from 1 to `steps`.

    It rises linearly over the warm-up and reaches its largest value at the warm-up's last update; then it follows
    the schedule, which never goes below `min_learning_rate_ratio` of it.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * SCHEDULES[config.schedule or config.own_schedule](Place(step, warmup, steps), config)


def cosine(place: Place, config: LoopConfig) -> float:
    """Half a cosine, down to the smallest value (arXiv 1608.03983, section 3, without restarts)."""
    return _fallen((1 - math.cos(math.pi * place.progress)) / 2, config)


def linear(place: Place, config: LoopConfig) -> float:
    """A straight line, down to the smallest value."""
    return _fallen(place.progress, config)


def warmup_stable_decay(place: Place, config: LoopConfig) -> float:
    """Constant, then a straight line over the last `decay` of the way (WSD; arXiv 2404.06395, section 4)."""
    return _fallen(max(0.0, 1 - (1 - place.progress) / config.decay) if config.decay else 0.0, config)


def inverse_sqrt(place: Place, config: LoopConfig) -> float:
    """With the square root of the step, as of the warm-up's end (arXiv 1706.03762, section 5.3)."""
    return max(config.min_learning_rate_ratio, math.sqrt(max(1, place.warmup) / place.step))


def constant(_place: Place, _config: LoopConfig) -> float:
    """The largest value to the end."""
    return 1.0


def _fallen(share: float, config: LoopConfig) -> float:
    """The value after this share of the way down."""
    return 1 - (1 - config.min_learning_rate_ratio) * share


SCHEDULES: dict[str, Callable[[Place, LoopConfig], float]] = {
    "cosine": cosine,
    "wsd": warmup_stable_decay,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "constant": constant,
}
