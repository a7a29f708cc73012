"""How much work the server takes on: beyond its bounds a request is refused at once, and told when to come again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits
from tallow.serve.wire import Update

FIRST_TOKENS_PER_S = 1000.0
"""Of prompts, as long as nothing has been measured."""
MOST_RETRY_S = 60.0
Result = TypeVar("Result")


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

    @asynccontextmanager
    async def place(self, num_bytes: int, timeout_s: float | None = None) -> AsyncIterator[Place]:
        """A place for a request whose prompt has so many bytes, and so at most as many tokens; until the block is left.

        Raises:
            ApiError: There is none (429), there never is one for so many (400), the server is about to end (503), or
                time is up (408).
        """
        place = self._enter(num_bytes)
        try:
            async with self.deadline(timeout_s):
                yield place
        finally:
            place.leave()

    @asynccontextmanager
    async def deadline(self, timeout_s: float | None) -> AsyncIterator[None]:
        """So much time, at most what the limits say, for what is done in the block.

        Raises:
            ApiError: It is up (408).
        """
        seconds = min(timeout_s or self._limits.request_s, self._limits.request_s)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise ApiError(408, f"there was no answer within {seconds:g} s", code="timeout") from error

    async def in_turns(
        self,
        works: Sequence[Callable[[], Awaitable[Result]]],
        num_bytes: int,
        timeout_s: float | None,
        *,
        at_once: int | None = None,
    ) -> list[Result]:
        """What is done for the prompts of one request: so many at once that they never keep each other out.

        Args:
            works: What is done, a prompt each; it finds a place for itself.
            num_bytes: Of the largest prompt.
            timeout_s: For all of them.
            at_once: The most; None: as many as the limits say.

        Raises:
            ApiError: One has failed, or time is up.
        """
        fitting = min(self._limits.requests, self._limits.queued_tokens // max(num_bytes, 1))
        turns = asyncio.Semaphore(max(1, min(fitting, at_once or fitting)))

        async def take_turn(work: Callable[[], Awaitable[Result]]) -> Result:
            async with turns:
                return await work()

        tasks = [asyncio.create_task(take_turn(work)) for work in works]
        try:
            async with self.deadline(timeout_s):
                return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _enter(self, num_bytes: int) -> Place:
        if num_bytes > self._limits.queued_tokens:
            message = f"the prompt has {num_bytes:,} bytes, at most {self._limits.queued_tokens:,} are taken"
            raise ApiError(400, f"{message} (limits.queued_tokens)", code="context_length_exceeded")
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        if self.num_requests >= self._limits.requests:
            raise ApiError(429, "too many requests are waiting", code="queue_full", retry_after_s=self._wait_s())
        if self.num_queued_tokens + num_bytes > self._limits.queued_tokens:
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
        self._admission.num_requests -= 1
        self.reserve(0)
