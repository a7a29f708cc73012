"""Speed, and waiting for data, between one record of the metrics and the next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Times the parts of a step; what lies between them (validation, checkpoints) does not count.

    Args:
        tokens: Tokens of the run so far; of a run that goes back, fewer again.
        flops_per_token: What the model computes for a token.

    Attributes:
        own_s: Median seconds of a step until this process met the others, as of the last reading.
    """

    def __init__(self, tokens: int, flops_per_token: float) -> None:
        self.tokens = tokens
        self.flops_per_token = flops_per_token
        self.own_s = 0.0
        self._forget()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time this block as waiting for data, with which a step begins."""
        start = time.perf_counter()
        yield
        self._waiting_s, self._working_s = time.perf_counter() - start, 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time this block as work of the model; a step may have several."""
        start = time.perf_counter()
        yield
        self._working_s += time.perf_counter() - start

    def count(self, tokens: int, own_s: float) -> None:
        """A step is over: `tokens` went through the model, and this process computed for `own_s` by itself."""
        self.tokens += tokens
        self._counted += tokens
        self._waits_s.append(self._waiting_s)
        self._steps_s.append(self._waiting_s + self._working_s)
        self._owns_s.append(self._waiting_s + own_s)

    def read(self) -> dict[str, float]:
        """`tokens` so far and, since the last reading, `tokens_per_s`, `flops_per_s`, `step_s` (the median) and
        `data_wait`, a share."""
        seconds = sum(self._steps_s)
        speed = self._counted / seconds
        reading = {
            "tokens": self.tokens,
            "tokens_per_s": round(speed, 1),
            "flops_per_s": round(speed * self.flops_per_token),
            "step_s": round(statistics.median(self._steps_s), 6),
            "data_wait": round(sum(self._waits_s) / seconds, 4),
        }
        self.own_s = statistics.median(self._owns_s)
        self._forget()
        return reading

    def _forget(self) -> None:
        self._counted = 0
        self._waits_s: list[float] = []
        self._steps_s: list[float] = []
        self._owns_s: list[float] = []
