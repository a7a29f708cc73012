"""Learning rates: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from tallow.train.config import LoopConfig


def learning_rate(step: int, steps: int, config: LoopConfig) -> float:
    """The learning rate of update `step`, counted from 1 to `steps`.

    It rises linearly over the warm-up and reaches its largest value at the warm-up's last update; then it follows
    the schedule, which ends at `min_learning_rate_ratio` of it at the last update.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    # the share of the way down, from 0 to 1
    fallen = SCHEDULES[config.schedule](progress, config.decay)
    return config.learning_rate * (1 - (1 - config.min_learning_rate_ratio) * fallen)


def cosine(progress: float, _decay: float) -> float:
    """Half a cosine (arXiv 1608.03983, section 3, without restarts)."""
    return (1 - math.cos(math.pi * progress)) / 2


def linear(progress: float, _decay: float) -> float:
    """A straight line."""
    return progress


def warmup_stable_decay(progress: float, decay: float) -> float:
    """Constant, then a straight line over the last `decay` of the way (WSD; arXiv 2404.06395, section 4)."""
    return max(0.0, 1 - (1 - progress) / decay) if decay else 0.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": warmup_stable_decay,
}
