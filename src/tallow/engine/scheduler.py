"""Which sequences take part in a step, and with how many tokens.

There are no prefill and decode phases. A sequence has `num_computed_tokens`, which catches up with its `num_tokens`
under a budget of tokens a step. Continuous batching, chunked prefill, the reuse of prefixes and preemption (by
computing again) follow from this one rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tallow.engine.blocks import BLOCK_TOKENS, BlockPool
from tallow.engine.request import Request, RequestState


@dataclass
class SchedulerCounts:
    """What has happened so far.

    Args:
        preemptions: How often a request had to give its blocks to another and be computed again.
        queried_tokens: Tokens of prompts that were looked up in the cache.
        hit_tokens: Those of them that were found.
    """

    preemptions: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0


class Scheduler:
    """Holds the unfinished requests, and gives them blocks of the cache.

    Args:
        pool: The cache's blocks.
        max_tokens: Token budget of a step.
        max_running: Most requests that hold blocks at a time; the others wait.
    """

    def __init__(self, pool: BlockPool, max_tokens: int, max_running: int) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_running = max_running
        self.counts = SchedulerCounts()
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Take a request out; its blocks are free again."""
        for requests in (self.running, self.waiting):
            if request in requests:
                requests.remove(request)
        self._release(request)

    def schedule(self) -> list[tuple[Request, int]]:
        """The requests of the next step and how many tokens of each, with blocks for them."""
        budget, scheduled = self.max_tokens, []
        for request in list(self.running):
            if budget == 0:
                break
            if request.state is not RequestState.RUNNING:  # preempted for one before it
                continue
            count = min(budget, request.num_new_tokens)
            if not self._make_room(request, count):
                break
            budget -= count
            scheduled.append((request, count))
        for request in [request for request in self.waiting if request.is_ready]:
            if budget == 0 or len(self.running) == self.max_running:
                break
            self._reuse_prefix(request)
            count = min(budget, request.num_new_tokens)
            if self._missing_blocks(request, count) > self.pool.num_free:
                self._release(request)
                break
            self.counts.queried_tokens += request.num_tokens
            self.counts.hit_tokens += request.num_computed_tokens
            self._take_blocks(request, count)
            request.state = RequestState.RUNNING
            self.running.append(request)
            self.waiting.remove(request)
            budget -= count
            scheduled.append((request, count))
        return scheduled

    def publish(self, request: Request) -> None:
        """Let the blocks that have become full be found by requests with the same beginning."""
        blocks = request.blocks
        for index in range(request.num_published_blocks, request.num_computed_tokens // BLOCK_TOKENS):
            tokens = tuple(request.token_ids[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
            self.pool.publish(blocks[index], request.cache_salt, blocks[index - 1] if index else None, tokens)
            request.num_published_blocks = index + 1

    def check(self) -> None:
        """Whether every block is accounted for (AssertionError if not)."""
        self.pool.check(request.blocks for request in self)

    def _make_room(self, request: Request, count: int) -> bool:
        """Blocks for the next tokens of a running request, if need be those of requests that came after it."""
        while self._missing_blocks(request, count) > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        self._take_blocks(request, count)
        return True

    def _preempt(self, request: Request) -> None:
        self.counts.preemptions += 1
        request.state = RequestState.WAITING
        self.waiting.insert(0, request)
        self.running.remove(request)
        self._release(request)

    def _reuse_prefix(self, request: Request) -> None:
        """Share the blocks in which the cache has the request's first tokens; its last token is always computed."""
        before: int | None = None
        for index in range((request.num_tokens - 1) // BLOCK_TOKENS):
            tokens = tuple(request.token_ids[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
            block = self.pool.find(request.cache_salt, before, tokens)
            if block is None:
                break
            request.blocks.append(block)
            before = block
        self.pool.share(request.blocks)
        request.num_published_blocks = len(request.blocks)
        request.num_computed_tokens = len(request.blocks) * BLOCK_TOKENS

    def _missing_blocks(self, request: Request, count: int) -> int:
        return -(-(request.num_computed_tokens + count) // BLOCK_TOKENS) - len(request.blocks)

    def _take_blocks(self, request: Request, count: int) -> None:
        request.blocks.extend(self.pool.allocate(max(0, self._missing_blocks(request, count))))

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        del request.blocks[:]
        request.num_computed_tokens = request.num_published_blocks = 0
