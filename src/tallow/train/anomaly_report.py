"""What a worker tells the others of its bad batches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tallow.train.anomaly import AnomalyConfig, Judge


@dataclass(frozen=True)
class LeftOut:
    """A bad batch.

    Args:
        step: Of the run.
        complaint: What is wrong with it, in a few words.
        loss: Mean over its targets, in nats.
        norm: Of that loss's gradient.
        rows: Their numbers, where they have some.
    """

    step: int
    complaint: str
    loss: float
    norm: float
    rows: Sequence[int]

    @property
    def is_finite(self) -> bool:
        """Whether both loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(frozen=True)
class Report:
    """How a worker is doing.

    Args:
        left_out: Its bad batches since the workers last met.
        streak: Bad batches in a row, up to now.
        skipped: Bad batches since the run began.
        recent: Bad batches within the horizon.
        weights_broken: Whether its weights are not finite.
    """

    left_out: Sequence[LeftOut]
    streak: int
    skipped: int
    recent: int
    weights_broken: bool

    def is_astray(self, config: AnomalyConfig, *, exactly: bool) -> bool:
        """Whether an earlier checkpoint is to be taken up.

        Args:
            exactly: Only now are there enough bad batches in a row for that, not before already.
        """
        enough = self.streak == config.patience if exactly else self.streak >= config.patience
        return self.weights_broken or enough

    def dump(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Report:
        """What `dump` has made text of."""
        values = json.loads(text)
        return cls(**{**values, "left_out": [LeftOut(**value) for value in values["left_out"]]})


def report_of(judge: Judge, left_out: Sequence[LeftOut], *, weights_broken: bool) -> Report:
    """What there is to tell of batches that were judged."""
    state = judge.state
    return Report(left_out, state.streak, state.skipped, len(state.bad_steps), weights_broken)
