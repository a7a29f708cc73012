"""Speed, and waiting for data, between one record of the metrics and the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Times the parts of a step; what lies between them (validation, checkpoints) does not count.

    Args:
        tokens: Tokens of the run so far; the loop adds to it.
        flops_per_token: What the model computes for a token.
    """

    def __init__(self, tokens: int, flops_per_token: float) -> None:
        self.tokens = tokens
        self.flops_per_token = flops_per_token
        self._before, self._waiting_s, self._working_s = tokens, 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time this block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waiting_s += time.perf_counter() - start

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time this block as work of the model."""
        start = time.perf_counter()
        yield
        self._working_s += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """`tokens` so far and, since the last reading, `tokens_per_s`, `flops_per_s` and `data_wait`, a share."""
        seconds = self._waiting_s + self._working_s
        speed = (self.tokens - self._before) / seconds
        reading = {
            "tokens": self.tokens,
            "tokens_per_s": round(speed, 1),
            "flops_per_s": round(speed * self.flops_per_token),
            "data_wait": round(self._waiting_s / seconds, 4),
        }
        self._before, self._waiting_s, self._working_s = self.tokens, 0.0, 0.0
        return reading
