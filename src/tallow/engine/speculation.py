"""Speculative decoding: guess the next tokens cheaply, and let the model check them all in one pass.

A guess is kept as long as it is what the request's own sampler chooses from the model's logits at its place. So every
token is drawn exactly as without speculation: it changes neither the distribution of answers nor, given a seed, a
single token. Rejection sampling (arXiv 2211.17192) accepts somewhat more guesses of a draft model that samples by
itself; here the draft draws with the random numbers of the request, as its sampler does, which comes close to that and
leaves the answer independent of the draft (arXiv 2408.07978).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from tallow.engine.block_tables import BlockTables
from tallow.engine.blocks import BlockPool
from tallow.engine.request import Request, RequestState
from tallow.engine.runner import Runner, Scores, Span, context_length
from tallow.engine.step import Step
from tallow.engine.uninterrupted import uninterrupted
from tallow.errors import TallowError

MOST_GUESSES = 8
LONGEST_MATCH, SHORTEST_MATCH = 4, 2
TOKENS_AT_ONCE = 512
"""A draft model computes at most so many in a pass."""

FIRST_CHANCE = 0.7
"""That a guess is right, as long as nothing is known of a request."""
LEARNING_RATE = 0.2
PROBE_STEPS = 32
"""After so many steps of a request without a guess one is made, to see whether guesses pay again."""
PROBE_SHARE = 0.01
"""But not before so many that it takes only this part of their time: a draft has to catch up with the request first."""

MEMORY = 0.95
"""What the steps before count in comparison with a new one."""
FIRST_ROW_SHARE = 0.1
"""What a row is taken to cost of a step of one row, as long as nothing is known."""
PRIOR_VARIANCE = 0.05
"""Of the rows of past steps: with so much the measured cost counts as much as the first one."""


class Proposer(Protocol):
    """What makes guesses."""

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        """At most so many next tokens of each request."""
        ...


class NgramProposer:
    """What followed the last tokens when they occurred before, in prompt or answer (prompt lookup decoding).

    The longest of the last four to two tokens that occurred counts, and its latest occurrence.
    """

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Request, _Occurrences] = WeakKeyDictionary()

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        return [
            self._indexes.setdefault(request, _Occurrences()).continuation(request.token_ids, count) if count else []
            for request, count in zip(requests, most, strict=True)
        ]


@dataclass
class _Occurrences:
    """Where each run of tokens occurred last: the place after it."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = 0

    def continuation(self, tokens: Sequence[int], count: int) -> list[int]:
        for end in range(
            max(self.num_indexed, SHORTEST_MATCH), len(tokens)
        ):  # what ends at the last token has no successor yet
            for length in range(SHORTEST_MATCH, min(end, LONGEST_MATCH) + 1):
                self.places[tuple(tokens[end - length : end])] = end
        self.num_indexed = len(tokens)
        for length in range(min(LONGEST_MATCH, len(tokens)), SHORTEST_MATCH - 1, -1):
            place = self.places.get(tuple(tokens[-length:]))
            if place is not None:
                period = len(tokens) - place  # beyond the end the guess goes on repeating itself
                return [tokens[place + index % period] for index in range(count)]
        return []


class DraftModel:
    """A smaller model with the same vocabulary, which continues each request by itself.

    Args:
        runner: The model; it gets a cache of its own.
        cache_bytes: Memory for its keys and values. A request for which there is no room is not helped.
        vocab_size: Of the model that it helps, if that is another (some vocabularies are padded, others are not).
    """

    def __init__(self, runner: Runner, cache_bytes: int, vocab_size: int | None = None) -> None:
        self._runner = runner
        self._vocab_size = vocab_size or runner.config.vocab_size
        self._longest = context_length(runner.config)
        self._pool = BlockPool(max(1, cache_bytes // runner.block_bytes))
        self._drafts: dict[Request, _Draft] = {}
        runner.allocate(self._pool.num_blocks)

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        with uninterrupted():
            for request in [each for each in self._drafts if each.state is RequestState.FINISHED]:
                self._drafts.pop(request).tables.release()
        with uninterrupted():
            drafts = [
                self._take_up(request, count) if count else None for request, count in zip(requests, most, strict=True)
            ]
        growing = [draft for draft in drafts if draft is not None]
        while growing:
            self._grow(growing)
            growing = [draft for draft in growing if not draft.is_done]
        return [draft.guesses if draft is not None else [] for draft in drafts]

    def _take_up(self, request: Request, count: int) -> _Draft | None:
        """The draft of a request, with room for so many guesses; None if there is none."""
        draft = self._drafts.get(request)
        if draft is None:
            draft = self._drafts[request] = _Draft(request, BlockTables(self._pool, self._runner.layout))
        draft.begin(count)
        end = request.num_tokens + count
        unknown = max(request.token_ids) >= self._runner.config.vocab_size
        if unknown or end > self._longest or draft.tables.missing(draft.num_computed, end) > self._pool.num_free:
            self._drafts.pop(request).tables.release()
            return None
        draft.tables.prepare(draft.num_computed, end)
        return draft

    def _grow(self, drafts: Sequence[_Draft]) -> None:
        """One pass over the next tokens of some drafts."""
        spans, guessing, budget = [], [], TOKENS_AT_ONCE
        for draft in drafts:
            tokens = draft.next_tokens(budget)
            if not tokens:
                break
            budget -= len(tokens)
            catches_up = draft.num_computed + len(tokens) == draft.num_tokens
            spans.append(Span(tokens, draft.num_computed, int(catches_up), draft.tables.tables))
            if catches_up:
                guessing.append(draft)
        scores = self._runner.run(spans)
        for draft, span in zip(drafts, spans, strict=False):  # there may have been no budget for the last ones
            draft.num_computed += len(span.tokens)
        for row, draft in enumerate(guessing):
            draft.guess(scores, row, self._vocab_size)


@dataclass
class _Draft:
    """The continuation of one request by the draft model.

    Args:
        request: The request.
        tables: Its blocks in the cache of the draft model.
        num_confirmed: Tokens of the request when it was continued last; the guesses come after them.
        guesses: How it was continued.
        wanted: How many guesses there are to be.
        num_computed: Tokens, guesses included, whose keys and values are in the cache.
    """

    request: Request
    tables: BlockTables
    num_confirmed: int = 0
    guesses: list[int] = field(default_factory=list)
    wanted: int = 0
    num_computed: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_confirmed + len(self.guesses)

    @property
    def is_done(self) -> bool:
        return len(self.guesses) >= self.wanted

    def begin(self, count: int) -> None:
        """Continue the request as it is now; what was computed for guesses that were wrong is worth nothing."""
        tokens = self.request.token_ids
        right = self.num_confirmed
        while right < min(self.num_tokens, len(tokens)) and self.guesses[right - self.num_confirmed] == tokens[right]:
            right += 1
        self.num_computed = min(self.num_computed, right, len(tokens) - 1)
        self.num_confirmed, self.guesses, self.wanted = len(tokens), [], count

    def next_tokens(self, most: int) -> list[int]:
        return [
            *self.request.token_ids[self.num_computed :],
            *self.guesses[max(0, self.num_computed - self.num_confirmed) :],
        ][:most]

    def guess(self, scores: Scores, row: int, vocab_size: int) -> None:
        """Draw the next token as the request's sampler would draw it from these logits."""
        request, token = self.request, scores.tokens[row]
        if math.isnan(scores.log_sum_exp[row]):
            self.wanted = 0
            return
        if not request.sampler.is_greedy or token >= vocab_size:
            logits_V = scores.logits_RV[row, :vocab_size]
            logits_V = np.pad(logits_V, (0, vocab_size - len(logits_V)), constant_values=-np.inf)
            try:
                token = request.sampler.choose(logits_V, [*request.ids, *self.guesses])
            except TallowError:  # the request's structure allows nothing here; its own answer may take another way
                token = -1
        if token < 0:
            self.wanted = 0
            return
        self.guesses.append(token)
        if token in request.stop_ids:
            self.wanted = len(self.guesses)


class Speculation:
    """Decides how many tokens are guessed.

    A guess is worth its row in the step as long as the chance that it is right, over what a row costs, is more than the
    tokens a second that there are without it; and all of them must be worth it that the step cannot run ahead. Chances
    and costs are measured: so where guesses do not pay, none are made (but for one in 32 steps or more, to see if that
    has changed).

    Args:
        proposer: Makes the guesses; None: there are none.
    """

    def __init__(self, proposer: Proposer | None) -> None:
        self.guessed_tokens = self.accepted_tokens = 0
        self._proposer = proposer
        self._cost = StepCost()
        self._overhead_seconds = _Average()
        self._guess_seconds = _Average()
        self._call_seconds = self._last_guess_seconds = 0.0
        self._records: WeakKeyDictionary[Request, _Record] = WeakKeyDictionary()

    @property
    def is_on(self) -> bool:
        """Whether anybody makes guesses."""
        return self._proposer is not None

    def steps_to_probe(self, requests: Sequence[Request]) -> int:
        """How many steps from now on will have no guesses; one step may take their place."""
        if self._proposer is None:
            return sys.maxsize
        return min((self._records.get(request, _Record()).steps_to_probe for request in requests), default=0)

    def guess(self, requests: Sequence[Request], spare: int, passes: int) -> dict[Request, list[int]]:
        """Next tokens for requests that add one, at most `spare` in all; a step without any may have so many passes."""
        if self._proposer is None or not requests:
            return {}
        most = self._numbers(requests, spare, passes)
        begin = time.perf_counter()
        guesses = self._proposer.propose(requests, most)
        self._call_seconds = time.perf_counter() - begin
        if total := sum(map(len, guesses)):
            self._last_guess_seconds = self._call_seconds
            self._guess_seconds.add(self._call_seconds / total)
        for request, number, guessed in zip(requests, most, guesses, strict=True):
            if number:
                self._records[request].found.add(float(bool(guessed)))
        return {request: guessed for request, guessed in zip(requests, guesses, strict=True) if guessed}

    def learn(self, step: Step, pass_seconds: float, passes: int, seconds: float) -> None:
        """What a step that has been taken says of costs and chances.

        Args:
            step: The step.
            pass_seconds: What each of its passes took.
            passes: How many there were.
            seconds: What the whole step took.
        """
        if step.num_rows is not None:
            self._cost.observe(step.num_rows, pass_seconds)
            self._overhead_seconds.add(max(0.0, seconds - passes * pass_seconds - self._call_seconds))
        self._call_seconds = 0.0
        if passes > 1 and self._proposer is not None:
            for part in step.parts:
                record = self._records[part.share.request]
                record.idle_steps += passes
                record.steps_to_probe -= passes
        for request, guessed, accepted in step.accepted():
            self.guessed_tokens += guessed
            self.accepted_tokens += accepted
            record = self._records[request]
            for right in [1.0] * accepted + [0.0] * (accepted < guessed):
                record.chance.add(right)

    def _numbers(self, requests: Sequence[Request], spare: int, passes: int) -> list[int]:
        records = [self._records.setdefault(request, _Record()) for request in requests]
        base, per_row = self._cost.line()
        plain_tokens, plain_seconds = float(len(requests)), base + per_row * len(requests)
        tokens, seconds = plain_tokens, plain_seconds + self._overhead_seconds.value
        per_guess = per_row + self._guess_seconds.value
        numbers, room = [], spare
        for request, record in zip(requests, records, strict=True):
            most = min(MOST_GUESSES, request.limit - len(request.ids) - 1, room)
            number, gain, found = 0, record.chance.value, record.found.value
            while number < most and gain * seconds > per_guess * tokens:
                tokens, seconds = tokens + found * gain, seconds + found * per_guess
                number, gain = number + 1, gain * record.chance.value
            room -= number
            numbers.append(number)
        if tokens * (plain_seconds + self._overhead_seconds.value / passes) <= plain_tokens * seconds:
            numbers, room = [0] * len(requests), spare
        probe_steps = max(PROBE_STEPS, self._last_guess_seconds / (PROBE_SHARE * plain_seconds))
        for index, (request, record) in enumerate(zip(requests, records, strict=True)):
            if numbers[index] == 0 and record.idle_steps >= probe_steps:
                numbers[index] = max(0, min(1, request.limit - len(request.ids) - 1, room))
                room -= numbers[index]
            record.idle_steps = 0 if numbers[index] else record.idle_steps + 1
            record.steps_to_probe = 0 if numbers[index] else int(probe_steps) - record.idle_steps
        return numbers


class _Average:
    """Of what was measured, the latest counting most.

    Args:
        first: What it is taken for as long as nothing has been measured; None: the first measurement is all there is.
    """

    def __init__(self, first: float | None = None) -> None:
        self.value = first or 0.0
        self._is_empty = first is None

    def add(self, measured: float) -> None:
        self.value += (measured - self.value) * (1.0 if self._is_empty else LEARNING_RATE)
        self._is_empty = False


@dataclass
class _Record:
    """What is known of the guesses for a request.

    Args:
        chance: That a guess is right.
        found: The chance that there is a guess where one is wanted.
        idle_steps: Steps since a guess was wanted.
        steps_to_probe: Steps that will have none.
    """

    chance: _Average = field(default_factory=lambda: _Average(FIRST_CHANCE))
    found: _Average = field(default_factory=lambda: _Average(1.0))
    idle_steps: int = 0
    steps_to_probe: int = 0


class StepCost:
    """Seconds of a step as a line over its rows, fitted to the steps seen so far, the latest counting most."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows_rows = self._rows_seconds = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """A step in which all tokens got logits took so long."""
        sums = (self._weight, self._rows, self._seconds, self._rows_rows, self._rows_seconds)
        news = (1.0, rows, seconds, rows * rows, rows * seconds)
        self._weight, self._rows, self._seconds, self._rows_rows, self._rows_seconds = (
            MEMORY * old + new for old, new in zip(sums, news, strict=True)
        )

    def line(self) -> tuple[float, float]:
        """Seconds of a step without rows, and of a row. Steps that all had as many rows say little of the second."""
        if self._weight == 0.0:
            return 1.0, FIRST_ROW_SHARE
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows_rows / self._weight - rows**2
        covariance = self._rows_seconds / self._weight - rows * seconds
        per_row = (covariance + PRIOR_VARIANCE * FIRST_ROW_SHARE * seconds / rows) / (variance + PRIOR_VARIANCE)
        per_row = min(max(per_row, 0.0), seconds / rows)
        return seconds - per_row * rows, per_row
