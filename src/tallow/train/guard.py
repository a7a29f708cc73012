"""Stands between a gradient and the weights: bad batches are left out, and weights that went astray are taken back.

All processes of a worker decide by its first one's numbers, so they do the same. Several workers leave out batches each
for itself, and tell each other when they meet; whether they go back they decide together.
"""

from __future__ import annotations

from collections.abc import Sequence

from tallow.console import say
from tallow.data.batch import Packed
from tallow.errors import DataError, TallowError
from tallow.parallel import World
from tallow.parallel.shares import own_share
from tallow.run import StageRun
from tallow.train.anomaly import AnomalyConfig, Judge
from tallow.train.anomaly_log import AnomalyLog
from tallow.train.anomaly_report import LeftOut, Report, report_of
from tallow.train.checkpoint import Checkpoints
from tallow.train.counters import WorkerCounters
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
        self.workers = updater.layout.workers
        self.judge = Judge(config)
        self.log = AnomalyLog(run.directory)
        self.weights_broken = False
        self._left_out: list[LeftOut] = []
        self._reports = [self._report()]

    @property
    def streak(self) -> int:
        """Bad batches in a row, up to when the workers last met; of the worker with the most."""
        return max(report.streak for report in self._reports)

    @property
    def skipped(self) -> int:
        """Bad batches since the run began, until then, of all workers."""
        return sum(report.skipped for report in self._reports)

    def counters(self) -> tuple[WorkerCounters, ...]:
        """What a checkpoint keeps of each worker. All processes must call it."""
        own = WorkerCounters(anomalies=self.judge.state, loss_scale=self.updater.scale)
        texts = self.workers.peers.gather_text(own.model_dump_json())
        return tuple(WorkerCounters.model_validate_json(text) for text in texts)

    def take_up(self, step: int, counters: Sequence[WorkerCounters]) -> None:
        """Go on after `step` with what its checkpoint counted; of other workers than now, as their weights do.

        All processes must call it.
        """
        own = self._own(counters)
        self.judge.state, self.updater.scale = own.anomalies, own.loss_scale
        if self.workers.everyone.is_main:
            self.log.rewind(step, self.judge.state.avoided)
        self.confer()

    def require_learned(self, steps: int) -> None:
        """Refuse to call a run done that has left out more than half of its batches.

        Raises:
            TallowError: It has.
        """
        batches = steps * self.workers.count
        if 2 * self.skipped > batches:
            raise _diverged(steps, f"{self.skipped:,} of {batches:,} batches were bad", "so few teach nothing")

    def _own(self, counters: Sequence[WorkerCounters]) -> WorkerCounters:
        return counters[self.workers.number % len(counters)]

    def update(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> Update:
        """Change the weights by one step, unless its batch is bad, or to be left out from the beginning.

        Optimizers that keep no gradients have learned a batch before anyone knows that it is a spike.

        `confer` must follow before the weights are used for anything else.

        Raises:
            DataError: There is no target token in the whole batch.
        """
        if step in self.judge.state.avoided:
            return LEFT_OUT
        found = self.updater.find(step, micro_batches, learning_rate, precision)
        # a norm may differ in its last bit between machines, and all must decide alike
        [norm] = self.world.sum(found.gradient_norm if self.world.rank == 0 else 0.0)
        complaint = self.judge.complaint(step, found.loss, norm)
        if complaint is None:
            self.updater.apply(step, micro_batches, learning_rate, precision)
            return found
        self.updater.discard()
        # processes that share sequences have the same rows
        rows = sorted({int(row) for part in self.world.gather(*_rows(micro_batches)) for row in part})
        self._left_out.append(LeftOut(step=step, complaint=complaint, loss=found.loss, norm=norm, rows=rows))
        self.weights_broken = not self._left_out[-1].is_finite and self._weights_broken(self.world)
        return found

    def confer(self) -> None:
        """Let the workers tell each other what they have left out since they last met. All processes must call it.

        Raises:
            TallowError: There were more bad batches than are borne.
        """
        own = self._report()
        texts = self.workers.peers.gather_text(own.dump()) if self.workers.count > 1 else []
        self._reports = [Report.parse(text) for text in texts] or [own]
        self._left_out = []
        for worker, report in enumerate(self._reports):
            for left_out in report.left_out if self.workers.everyone.is_main else []:
                self._note(left_out, f" of worker {worker}" if self.workers.count > 1 else "")
        for report in self._reports:
            if report.left_out and report.recent > self.judge.config.budget:
                last = report.left_out[-1]
                raise _diverged(last.step, last.complaint, f"so many bad batches ({report.recent}) are not borne")

    def _note(self, left_out: LeftOut, whose: str) -> None:
        learned = self.updater.updates_in_backward and left_out.is_finite
        fate = "is bad, but learned by now" if learned else "is left out"
        self.log.bad(left_out.step, left_out.complaint, left_out.loss, left_out.norm, left_out.rows, learned=learned)
        say(f"the batch{whose} of step {left_out.step:,} {fate}: {left_out.complaint}{_list(left_out.rows)}")

    def _report(self) -> Report:
        return report_of(self.judge, self._left_out, weights_broken=self.weights_broken)

    @property
    def wants_back(self) -> bool:
        """Whether the weights have gone astray, so that an earlier checkpoint is to be taken up."""
        return bool(self._astray())

    def _astray(self) -> list[Report]:
        """Of the workers whose weights have gone astray; one among several may have had to wait until they met."""
        return [
            report for report in self._reports if report.is_astray(self.judge.config, exactly=self.workers.count == 1)
        ]

    def roll_back(self, step: int, checkpoints: Checkpoints) -> tuple[int, int] | None:
        """Take up the newest checkpoint that is to be trusted; all processes must call it.

        Returns:
            The step to go on after, and the tokens until then; None if there is no such checkpoint.

        Raises:
            DataError: The weights that the run began with are not finite.
            TallowError: There is no such checkpoint, and the weights are not finite.
        """
        checkpoints.finish()
        everyone = self.workers.everyone
        astray = self._astray()
        first_bad = step - max(report.streak for report in astray) + 1
        suspect = max(1, first_bad - self.judge.config.patience)
        # since when weights that are merely bad have been so nobody knows, so all that is suspected must be undone
        broken = all(report.weights_broken for report in astray)
        done, counters = checkpoints.restore(before=first_bad if broken else suspect)
        while done and self._weights_broken(everyone):
            done, counters = checkpoints.restore(before=done)
        if not done:
            if self._weights_broken(everyone):
                if first_bad == 1:  # before any update
                    raise DataError(
                        "the model that training starts from has weights that are not finite",
                        "take another one, or mend it",
                    )
                raise _diverged(step, "the weights are not finite", "no checkpoint has better ones")
            return None
        self.weights_broken = False
        own = self._own(counters.workers)
        self.judge.take_up(own.anomalies, done, suspect, step)
        self.updater.scale = own.loss_scale
        self._reports = [self._report()]
        # so that the steps that are left out are known, whenever the run is killed from now on
        checkpoints.go_back(done, counters.model_copy(update={"workers": self.counters()}))
        if everyone.is_main:
            self.run.rewind_metrics(done)
            self.log.rolled_back(step, done, suspect)
            say(f"going back to step {done:,}, and on without the batches of steps {suspect:,} to {step:,}")
        return done, counters.tokens

    def _weights_broken(self, world: World) -> bool:
        broken = any(not bool(own_share(value).isfinite().all()) for value in self.updater.parameters.values())
        return bool(world.sum(broken)[0])


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
        "lower loop.learning_rate or lengthen loop.warmup, with --fresh; anomalies.jsonl lists the batches",
    )
