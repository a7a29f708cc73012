"""Which rows of the data each step takes, counted from the start of the run."""

from __future__ import annotations

import math

from tallow.errors import UsageError
from tallow.train.config import LoopConfig


class BatchPlan:
    """Batches of one size, or of sizes that grow at first; together they take each row once, in order.

    With a ramp, a batch is as large as a straight line over the rows so far says, rounded down to a multiple of the
    first (arXiv 2005.14165, appendix B).

    Args:
        rows: Of the whole run.
        config: Settings of the training loop; its `steps` are not looked at.
    """

    def __init__(self, rows: int, config: LoopConfig) -> None:
        self.batch_size = config.batch_size
        self._ramp: list[range] = []
        self._ramp_rows = 0
        if config.batch_ramp is not None:
            start, growing_rows = config.batch_ramp.start, config.batch_ramp.share * rows
            while self._ramp_rows < growing_rows:
                wanted = start + (self.batch_size - start) * self._ramp_rows / growing_rows
                size = int(wanted) // start * start
                self._ramp.append(range(self._ramp_rows, self._ramp_rows + size))
                self._ramp_rows += size
        self.steps = len(self._ramp) + max(0, math.ceil((rows - self._ramp_rows) / self.batch_size))

    def rows(self, step: int) -> range:
        """The rows of a step, counted from 0."""
        if step < len(self._ramp):
            return self._ramp[step]
        first = self._ramp_rows + (step - len(self._ramp)) * self.batch_size
        return range(first, first + self.batch_size)

    def check_shares(self, processes: int) -> None:
        """See to it that each process gets rows of each batch.

        Raises:
            UsageError: The smallest batch has fewer.
        """
        smallest = len(self.rows(0))
        if smallest < processes:
            raise UsageError(f"{processes} processes cannot share batches of {smallest}", "raise loop.batch_size")


def plan_batches(config: LoopConfig, rows: int) -> BatchPlan:
    """The batches of a run of `config.steps` or, if these are not set, of so many rows."""
    if config.steps is None:
        return BatchPlan(rows, config)
    # the most rows that so many steps can take: fewer steps or more follow from fewer rows or more
    low, high = 1, config.steps * config.batch_size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if BatchPlan(middle, config).steps <= config.steps else (low, middle - 1)
    return BatchPlan(low, config)
