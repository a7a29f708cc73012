"""Which batches are bad: their loss or gradient is not finite, or far above what is ordinary.

The ordinary is the median of the last good batches, its spread the median distance from it, both of logarithms: neither
moves when a few batches are far out, and a run's own noise sets the scale. Source of going back to a checkpoint from
before a spike and leaving out the batches around it: PaLM (arXiv 2204.02311, section 5.1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tallow.errors import UsageError
from tallow.recipe import Section

# of a normal distribution, the standard deviation over the median distance from the median
DEVIATION_OF_MEDIAN_DISTANCE = 1.4826
# what is steadier than this still may rise so much for each deviation that the threshold allows
LEAST_LOSS_SPREAD, LEAST_NORM_SPREAD = 0.02, 0.1
LEAST_NORM = 1e-8


class AnomalyConfig(Section):
    """What becomes of batches that are bad: a loss or gradient that is not finite, or a spike.

    A bad batch changes nothing that is learned (but for spikes with `lomo` and `adalomo`, which have learned them when
    they are known); its rows are listed in `anomalies.jsonl`. When several follow one another, the weights themselves
    have gone astray: the last checkpoint from before is taken up again, and the batches before and during the spike are
    left out.

    Args:
        threshold: A spike is a loss or gradient norm whose logarithm is so many standard deviations above the median
            of the last good batches; None: only what is not finite is bad.
        window: Good batches that this median is of.
        warmup: Good batches before the first spike can be told.
        patience: So many bad batches in a row, and a checkpoint is taken up again; so many batches before them are
            left out, too.
        budget: Bad batches that are borne in any `horizon` steps; one more ends the run.
        horizon: Steps that `budget` is for.
    """

    incidental = frozenset(("budget", "horizon"))

    threshold: PositiveFloat | None = 10.0
    window: PositiveInt = 128
    warmup: PositiveInt = 64
    patience: PositiveInt = 5
    budget: NonNegativeInt = 20
    horizon: PositiveInt = 1000

    @model_validator(mode="after")
    def _warmup_fits_window(self) -> Self:
        if self.warmup > self.window:
            raise UsageError(
                f"anomalies.warmup is {self.warmup}, but only {self.window} batches are remembered",
                "raise anomalies.window or lower anomalies.warmup",
            )
        return self


class AnomalyState(Section):
    """What must be remembered to judge on as if the run had not stopped.

    Args:
        losses, norms: Of the last good batches, on the scale on which they are judged.
        streak: Bad batches in a row, up to now.
        bad_steps: Steps of the bad batches within the horizon.
        skipped: Bad batches since the run began.
        avoided: Steps that are left out.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    streak: NonNegativeInt = 0
    bad_steps: tuple[int, ...] = ()
    skipped: NonNegativeInt = 0
    avoided: tuple[int, ...] = ()


class Judge:
    """Judges the batches of a run, one after the other; all processes that give it the same numbers hear the same."""

    def __init__(self, config: AnomalyConfig) -> None:
        self.config = config
        self.state = AnomalyState()

    def complaint(self, step: int, loss: float, norm: float) -> str | None:
        """What is wrong with the batch of a step, in a few words; None: nothing.

        Args:
            loss: Mean over its targets, in nats.
            norm: Of that loss's gradient, before clipping.
        """
        state = self.state
        found = self._complaint(loss, norm)
        if found is None:
            self.state = state.model_copy(
                update={
                    "losses": (*state.losses, _loss_scale(loss))[-self.config.window :],
                    "norms": (*state.norms, _norm_scale(norm))[-self.config.window :],
                    "streak": 0,
                }
            )
        else:
            recent = [bad for bad in state.bad_steps if bad > step - self.config.horizon]
            self.state = state.model_copy(
                update={
                    "streak": state.streak + 1,
                    "bad_steps": (*recent, step),
                    "skipped": state.skipped + 1,
                }
            )
        return found

    def take_up(self, earlier: AnomalyState, done: int, first: int, last: int) -> None:
        """Go on after step `done` with what was known then, but leave out the steps from `first` to `last`."""
        avoided = {*self.state.avoided, *range(first, last + 1)}
        kept = {"bad_steps": self.state.bad_steps, "skipped": self.state.skipped}
        to_come = tuple(sorted(step for step in avoided if step > done))
        self.state = earlier.model_copy(update={"streak": 0, "avoided": to_come, **kept})

    def _complaint(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"its loss is {loss:.4g}"
        if not math.isfinite(norm):
            return f"its gradient's norm is {norm:.4g}"
        threshold = self.config.threshold
        if threshold is None or len(self.state.losses) < self.config.warmup:
            return None
        if _deviations(_loss_scale(loss), self.state.losses, LEAST_LOSS_SPREAD) > threshold:
            return f"its loss of {loss:.4g} is a spike"
        if _deviations(_norm_scale(norm), self.state.norms, LEAST_NORM_SPREAD) > threshold:
            return f"its gradient's norm of {norm:.4g} is a spike"
        return None


def _loss_scale(loss: float) -> float:
    """Of large losses the logarithm (of twice the loss); small and negative ones count as they are."""
    return math.asinh(loss)


def _norm_scale(norm: float) -> float:
    return math.log(max(norm, LEAST_NORM))


def _deviations(value: float, ordinary: Sequence[float], least_spread: float) -> float:
    """Standard deviations by which a value is above the ordinary."""
    median = statistics.median(ordinary)
    spread = DEVIATION_OF_MEDIAN_DISTANCE * statistics.median(abs(other - median) for other in ordinary)
    return (value - median) / max(spread, least_spread)
