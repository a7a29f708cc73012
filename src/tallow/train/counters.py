"""What a run counts and remembers from its start, as its checkpoints keep it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt

from tallow.recipe import Section
from tallow.train.anomaly import AnomalyState
from tallow.train.loss_scale import LossScale


class WorkerCounters(Section):
    """Of one worker."""

    anomalies: AnomalyState = AnomalyState()
    loss_scale: LossScale = LossScale()


class Counters(Section):
    """Of a run.

    Args:
        tokens: That went through the model.
        compiled: Whether its layers are compiled by now.
        workers: Those that make updates of their own; elsewhere there is one.
    """

    tokens: NonNegativeInt = 0
    compiled: bool = False
    workers: Annotated[tuple[WorkerCounters, ...], Field(min_length=1)] = (WorkerCounters(),)
