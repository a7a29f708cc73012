"""Which rows of the data each step takes, counted from the start of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from tallow.errors import UsageError
from tallow.train.config import BatchRamp, LoopConfig


class Stretch(NamedTuple):
    """Successive batches of one size.

    Args:
        step: Of the first of them.
        row: The first of that batch.
        size: Rows of each.
    """

    step: int
    row: int
    size: int


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
        ramp = config.batch_ramp
        self._stretches = _ramp(ramp, ramp.share * rows, self.batch_size) if ramp else [Stretch(0, 0, self.batch_size)]
        last = self._stretches[-1]
        self.steps = last.step + max(0, -((last.row - rows) // self.batch_size))

    def rows(self, step: int) -> range:
        """The rows of a step, counted from 0."""
        stretch = self._stretches[bisect_right(self._stretches, step, key=lambda stretch: stretch.step) - 1]
        first = stretch.row + (step - stretch.step) * stretch.size
        return range(first, first + stretch.size)

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


def _ramp(ramp: BatchRamp, growing_rows: float, largest: int) -> list[Stretch]:
    """Stretches of growing batches, and the endless one of the largest: as many as sizes, however many steps."""
    start, found, step, row = ramp.start, list[Stretch](), 0, 0

    def size_at(row: int) -> int:
        return int(start + (largest - start) * row / growing_rows) // start * start

    while row < growing_rows:
        size, end = size_at(row), math.ceil(growing_rows)
        if size + start <= largest:  # the line reaches the next size there, but for rounding
            end = math.ceil(size * growing_rows / (largest - start))
            while size_at(end - 1) > size:
                end -= 1
            while size_at(end) == size and end < growing_rows:
                end += 1
        found.append(Stretch(step, row, size))
        batches = -((row - end) // size)
        step, row = step + batches, row + batches * size
    return [*found, Stretch(step, row, largest)]
