"""Stands between a gradient and the weights: bad batches are left out, and weights that went astray are taken back.

All processes decide by the main one's numbers, so they do the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tallow.console import say
from tallow.data.batch import Packed
from tallow.errors import TallowError
from tallow.parallel.shares import own_share
from tallow.run import StageRun
from tallow.train.anomaly import AnomalyConfig, AnomalyState, Judge
from tallow.train.anomaly_log import AnomalyLog
from tallow.train.checkpoint import Checkpoints
from tallow.train.precision import Precision
from tallow.train.update import LEFT_OUT, Update, Updater

ROWS_SAID = 4


class Guard:
    """Updates the weights of a run by batches that are in order.

    Args:
        updater: What it guards.
        config: What is in order.
        run: Where what is not is noted.
    """

    def __init__(self, updater: Updater, config: AnomalyConfig, run: StageRun) -> None:
        self.updater, self.world, self.run = updater, updater.layout.world, run
        self.judge = Judge(config)
        self.log = AnomalyLog(run.directory)
        self.weights_broken = False

    @property
    def streak(self) -> int:
        """Bad batches in a row, up to now."""
        return self.judge.state.streak

    @property
    def skipped(self) -> int:
        """Bad batches since the run began."""
        return self.judge.state.skipped

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return self.judge.state.model_dump(mode="json")

    def take_up(self, step: int, counters: Mapping[str, Any]) -> None:
        """Go on after `step` with what its checkpoint counted."""
        self.judge.state = AnomalyState.model_validate(counters.get("anomalies", {}))
        self.updater.take_up(counters.get("loss_scale", {}))
        if self.world.is_main:
            self.log.rewind(step, self.judge.state.avoided)

    def update(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> Update:
        """Change the weights by one step, unless its batch is bad, or to be left out from the beginning.

        Raises:
            DataError: There is no target token in the whole batch.
            TallowError: There were more bad batches than are borne.
        """
        if step in self.judge.state.avoided:
            return LEFT_OUT
        found = self.updater.find(step, micro_batches, learning_rate, precision)
        # a norm may differ in its last bit between machines, and all must decide alike
        [norm] = self.world.sum(found.gradient_norm if self.world.is_main else 0.0)
        complaint = self.judge.complaint(step, found.loss, norm)
        if complaint is None:
            self.updater.apply(step, micro_batches, learning_rate, precision)
            return found
        self.updater.discard()
        # processes that share sequences have the same rows
        rows = sorted({int(row) for part in self.world.gather(*_rows(micro_batches)) for row in part})
        if self.world.is_main:
            self.log.skipped(step, complaint, found.loss, norm, rows)
            say(f"the batch of step {step:,} is left out: {complaint}{_list(rows)}")
        self.weights_broken = not (math.isfinite(found.loss) and math.isfinite(norm)) and self._weights_broken()
        if self.judge.is_over_budget:
            raise _diverged(step, complaint, f"so many bad batches ({len(self.judge.state.bad_steps)}) are not borne")
        return found

    @property
    def wants_back(self) -> bool:
        """Whether the weights have gone astray, so that an earlier checkpoint is to be taken up."""
        return self.weights_broken or self.streak == self.judge.config.patience

    def roll_back(self, step: int, checkpoints: Checkpoints) -> tuple[int, int] | None:
        """Take up the newest checkpoint that is to be trusted; all processes must call it.

        Returns:
            The step to go on after, and the tokens until then; None if there is no such checkpoint.

        Raises:
            TallowError: There is none, and the weights are not finite.
        """
        checkpoints.finish()
        first_bad = step - self.streak + 1
        suspect = max(1, first_bad - self.judge.config.patience)
        # since when weights that are merely bad have been so nobody knows, so all that is suspected must be undone
        done, counters = checkpoints.restore(before=first_bad if self.weights_broken else suspect)
        while done and self._weights_broken():
            done, counters = checkpoints.restore(before=done)
        if not done:
            if self._weights_broken():
                raise _diverged(step, "the weights are not finite", "no checkpoint has better ones")
            return None
        self.weights_broken = False
        self.judge.take_up(AnomalyState.model_validate(counters["anomalies"]), done, suspect, step)
        self.updater.take_up(counters["loss_scale"])
        # so that the steps that are left out are known, whenever the run is killed from now on
        checkpoints.go_back(done, {**counters, "anomalies": self.counters()})
        if self.world.is_main:
            self.run.rewind_metrics(done)
            self.log.rolled_back(step, done, suspect)
            say(f"going back to step {done:,}, and on without the batches of steps {suspect:,} to {step:,}")
        return done, counters["tokens"]

    def _weights_broken(self) -> bool:
        broken = any(not bool(own_share(value).isfinite().all()) for value in self.updater.parameters.values())
        return bool(self.world.sum(broken)[0])


def _rows(micro_batches: Sequence[Packed]) -> list[int]:
    """Numbers of this process's rows, where they have some."""
    return [number for packed in micro_batches if packed.numbers_B is not None for number in packed.numbers_B.tolist()]


def _list(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    more = f" and {len(rows) - ROWS_SAID:,} more" if len(rows) > ROWS_SAID else ""
    return f" (rows {', '.join(map(str, rows[:ROWS_SAID]))}{more})"


def _diverged(step: int, complaint: str, why: str) -> TallowError:
    return TallowError(
        f"training diverged at step {step:,}: {complaint}, and {why}",
        "lower loop.learning_rate or lengthen loop.warmup; anomalies.jsonl lists the batches",
    )
