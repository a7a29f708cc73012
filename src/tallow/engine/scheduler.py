"""Which sequences take part in a step, and with how many tokens.

There are no prefill and decode phases. A sequence has `num_computed_tokens`, which catches up with its `num_tokens`
under a budget of tokens a step. Continuous batching, chunked prefill, the reuse of prefixes, speculation and preemption
(by computing again) follow from this one rule.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from tallow.engine.block_tables import Copy
from tallow.engine.blocks import BLOCK_TOKENS, BlockPool
from tallow.engine.policies import Policy, priority, shortest
from tallow.engine.request import Request, RequestState

FIRST_WAITING = 64
"""Of those that wait only so many are considered in a step."""


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


@dataclass(frozen=True, slots=True)
class Share:
    """What a request is given of a step.

    Args:
        request: The request; it has blocks for these tokens.
        count: How many of its next tokens are computed.
        copies: Blocks whose content has to be copied before.
    """

    request: Request
    count: int
    copies: list[Copy]


class Scheduler:
    """Holds the unfinished requests, and gives them blocks of the cache.

    Args:
        pool: The cache's blocks.
        policy: Who goes first.
        max_tokens: Token budget of a step.
        max_running: Most requests that hold blocks at a time; the others wait.
    """

    def __init__(self, pool: BlockPool, policy: Policy, max_tokens: int, max_running: int) -> None:
        self.pool = pool
        self.policy = policy
        self.max_tokens = max_tokens
        self.max_running = max_running
        self.counts = SchedulerCounts()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._arrivals = itertools.count()

    def __iter__(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def arrive(self) -> int:
        """The next arrival number."""
        return next(self._arrivals)

    def add(self, request: Request) -> None:
        self._look_up(request)
        insort(self.waiting, request, key=self.policy)

    def remove(self, request: Request) -> None:
        """Take a request out; its blocks are free again."""
        for requests in (self.running, self.waiting):
            if request in requests:
                requests.remove(request)
        request.blocks.release()

    def fork(self, request: Request, other: Request) -> bool:
        """Let `other`, which is not held yet, go on where `request` is, with the same blocks.

        Returns:
            Whether there was room; if not it waits, and finds in the cache what it can.
        """
        if len(self.running) >= self.max_running:
            self.add(other)
            return False
        other.blocks.share(request.blocks, request.num_computed_tokens)
        other.num_computed_tokens = request.num_computed_tokens
        other.state = RequestState.RUNNING
        self.running.append(other)
        return True

    def schedule(self) -> list[Share]:
        """What each request of the next step is given; nothing if there are none."""
        while True:
            shares = self._schedule()
            if shares or not self.running or not (self.waiting or any(map(_has_tokens, self.running))):
                return shares
            # all that run wait for one that does not, and they hold the blocks that it needs
            self._preempt(max(self.running, key=self.policy), {})

    def extend(self, request: Request, end: int) -> int:
        """Take blocks for guessed tokens up to `end`, as far as there are free ones; returns how far."""
        start = request.num_computed_tokens
        while end > request.num_tokens and request.blocks.missing(start, end) > self.pool.num_free:
            end -= 1
        request.blocks.prepare(start, end)
        return end

    def check(self) -> None:
        """Whether every block is accounted for (AssertionError if not)."""
        self.pool.check(table for request in self for table in request.blocks.tables)

    def _schedule(self) -> list[Share]:
        budget, is_full = self.max_tokens, False
        shares: dict[Request, Share] = {}
        for request, is_new in [(each, each.state is RequestState.WAITING) for each in self._queue()]:
            if budget == 0:
                break
            if request.num_new_tokens == 0 or (is_new and is_full):
                continue  # it waits for others
            if not is_new and request.state is RequestState.WAITING:
                continue  # preempted for one before it
            if is_new and not self._admit(request, budget, shares):
                is_full = True
                continue
            count = min(budget, request.num_new_tokens, request.most_at_once)
            if not is_new and not self._make_room(request, count, shares):
                continue
            start = request.num_computed_tokens
            shares[request] = Share(request, count, request.blocks.prepare(start, start + count))
            budget -= count
        return list(shares.values())

    def _queue(self) -> list[Request]:
        """Those that add a token, which costs the others least; then all others as the policy says."""
        adding = [request for request in self.running if request.num_new_tokens <= 1]
        others = [request for request in self.running if request.num_new_tokens > 1]
        if self.waiting and (len(self.running) < self.max_running or self.policy is priority):
            if self.policy is shortest:
                for request in self.waiting[:FIRST_WAITING]:
                    self._look_up(request)
                self.waiting.sort(key=self.policy)
            others += itertools.islice((request for request in self.waiting if request.is_ready), FIRST_WAITING)
        return sorted(adding, key=self.policy) + sorted(others, key=self.policy)

    def _admit(self, request: Request, budget: int, shares: dict[Request, Share]) -> bool:
        """Let a waiting request run if there is room, or if those that hold it are of a lesser priority."""
        if not request.prompt_scores_missing:  # the cache has no logits
            request.num_computed_tokens = request.blocks.reuse(request.token_ids)
        count = min(budget, request.num_new_tokens, request.most_at_once)
        while len(self.running) >= self.max_running or not self._fits(request, count):
            victim = max(self.running, key=self.policy, default=None)
            if victim is None or victim.priority <= request.priority:
                request.blocks.release()
                request.num_computed_tokens = 0
                return False
            self._preempt(victim, shares)
        request.num_cached_tokens = request.num_computed_tokens
        self.counts.queried_tokens += request.num_tokens
        self.counts.hit_tokens += request.num_computed_tokens
        request.state = RequestState.RUNNING
        self.waiting.remove(request)
        self.running.append(request)
        return True

    def _make_room(self, request: Request, count: int, shares: dict[Request, Share]) -> bool:
        """Blocks for the next tokens of a running request, if need be those of requests that come after it."""
        while not self._fits(request, count):
            victim = max(self.running, key=self.policy)
            self._preempt(victim, shares)
            if victim is request:
                return False
        return True

    def _fits(self, request: Request, count: int) -> bool:
        start = request.num_computed_tokens
        return request.blocks.missing(start, start + count) <= self.pool.num_free

    def _preempt(self, request: Request, shares: dict[Request, Share]) -> None:
        """Take the blocks of a running request, and what it may have been given of the step."""
        self.counts.preemptions += 1
        shares.pop(request, None)
        self.running.remove(request)
        request.blocks.release()
        request.preempt()
        self.add(request)

    def _look_up(self, request: Request) -> None:
        if self.policy is shortest:
            request.num_cached_tokens = len(request.blocks.find(request.token_ids)[0]) * BLOCK_TOKENS


def _has_tokens(request: Request) -> bool:
    return request.num_new_tokens > 0
