"""How much work the server takes on: beyond its bounds a request is refused at once, and told when to come again."""

from __future__ import annotations

import time

from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits
from tallow.serve.wire import Update

FIRST_TOKENS_PER_S = 1000.0
"""Of prompts, as long as nothing has been measured."""
MOST_RETRY_S = 60.0


class Admission:
    """Counts unfinished requests, and the tokens of prompts whose answers have not begun.

    Args:
        limits: How many there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self.num_requests = self.num_queued_tokens = 0
        self.is_draining = False
        self._limits = limits
        self._tokens_per_s = FIRST_TOKENS_PER_S

    def enter(self, num_bytes: int) -> Place:
        """A place for a request whose prompt has so many bytes, and so at most as many tokens.

        Raises:
            ApiError: There is none (429), or the server is about to end (503).
        """
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        if self.num_requests >= self._limits.requests:
            raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after_s=self._wait_s())
        if self.num_requests and self.num_queued_tokens + num_bytes > self._limits.queued_tokens:
            raise ApiError(429, "too many prompts are waiting", code="queue_full", retry_after_s=self._wait_s())
        return Place(self, num_bytes)

    def learn(self, num_tokens: int, seconds: float) -> None:
        """So long it took from a request's arrival to its first token."""
        self._tokens_per_s += 0.1 * (num_tokens / max(seconds, 1e-3) - self._tokens_per_s)

    def _wait_s(self) -> float:
        return min(MOST_RETRY_S, self.num_queued_tokens / max(1.0, self._tokens_per_s))


class Place:
    """What one request takes up."""

    def __init__(self, admission: Admission, num_tokens: int) -> None:
        self._admission, self._num_tokens, self._entered_s = admission, 0, time.monotonic()
        self._is_left = False
        admission.num_requests += 1
        self.reserve(num_tokens)

    def reserve(self, num_tokens: int) -> None:
        """So many tokens its prompt has, as is known by now."""
        self._admission.num_queued_tokens += num_tokens - self._num_tokens
        self._num_tokens = num_tokens

    def watch(self, _update: Update) -> None:
        """Its answer has grown: it waits no longer."""
        if self._num_tokens:
            self._admission.learn(self._num_tokens, time.monotonic() - self._entered_s)
            self.reserve(0)

    def leave(self) -> None:
        if not self._is_left:
            self._is_left = True
            self._admission.num_requests -= 1
            self.reserve(0)
