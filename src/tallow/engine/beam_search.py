"""Beam search: the likeliest answers as a whole, sought along several at a time.

The rules, down to when a search ends, are those of `transformers`, so that its results are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tallow.engine.checks import flag, number, whole_number, whole_numbers
from tallow.engine.request import FinishReason, Request, TopLogProbs
from tallow.engine.scheduler import Scheduler
from tallow.errors import TallowError, UsageError

MOST_BEAMS = 64
GREATEST_PENALTY = 10.0
"""An answer of a thousand tokens to the power of it is still a number."""
EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamParams:
    """How a beam search goes.

    Args:
        num_beams: Answers that are followed at a time, and most that are found.
        max_new_tokens: Longest answer in tokens; cut to what fits into the model's context.
        length_penalty: An answer's score is its log-probability divided by its length to this power; so above 0 longer
            ones are preferred, below 0 shorter ones.
        early_stopping: `True`: end when `num_beams` answers are complete. `False`: when none that goes on would beat
            the worst of them if it were complete now. `never`: when none can.
        stop_ids: Tokens that complete an answer, besides the model's end tokens.
        ignore_eos: The model's end tokens do not complete one.

    Raises:
        UsageError: A value makes no sense.
    """

    num_beams: int = 4
    max_new_tokens: int = 128
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        object.__setattr__(self, "stop_ids", whole_numbers("stop_ids", self.stop_ids))
        object.__setattr__(self, "length_penalty", number("length_penalty", self.length_penalty))
        if not abs(self.length_penalty) <= GREATEST_PENALTY:
            wanted = f"it must be from {-GREATEST_PENALTY} to {GREATEST_PENALTY}"
            raise UsageError(f"length_penalty is {self.length_penalty}", wanted)
        flag("ignore_eos", self.ignore_eos)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UsageError(f"early_stopping is {self.early_stopping!r}", "it must be true, false or 'never'")
        if not 1 <= self.num_beams <= MOST_BEAMS:
            raise UsageError(f"num_beams is {self.num_beams}", f"it must be from 1 to {MOST_BEAMS}")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}", "it must be at least 1")


@dataclass(frozen=True)
class Hypothesis:
    """A complete answer.

    Args:
        ids: Its tokens, the one that ended it included.
        log_probs: Log-probability of each.
        score: Their sum divided by their number to the power of the length penalty.
        finish_reason: `stop` or `length`.
    """

    ids: list[int]
    log_probs: list[float]
    score: float
    finish_reason: FinishReason


class BeamSearch:
    """One search; its beams are requests that the scheduler holds as it does others, and go on together.

    Args:
        params: As submitted.
        first: The request that has the prompt and no answer yet.
        make: Makes another such request.
    """

    def __init__(self, params: BeamParams, first: Request, make: Callable[[], Request]) -> None:
        self.params = params
        self.beams = [first]
        self.results: list[Hypothesis] = []
        self.error: TallowError | None = None
        self.is_finished = False
        self._make = make
        self._stop_ids = first.stop_ids
        self._limit = first.limit
        self._candidates: dict[Request, TopLogProbs] = {}
        first.beams = self

    @property
    def num_candidates(self) -> int:
        """How many continuations of a beam are looked at: so many that not all can be ends."""
        return max(2, 1 + len(self._stop_ids)) * self.params.num_beams

    def put(self, beam: Request, candidates: TopLogProbs) -> None:
        """What may follow in one of the beams."""
        self._candidates[beam] = candidates

    def fail(self, error: TallowError) -> None:
        """Give the search up when it would be lengthened next."""
        self.error = error

    def take_back(self, beam: Request) -> None:
        """Forget what may follow: the beam has to be computed again."""
        self._candidates.pop(beam, None)

    def advance(self, scheduler: Scheduler) -> None:
        """Lengthen all beams by a token, once it is known of each what may follow."""
        if self.error is not None:
            self.finish(scheduler)
            return
        if len(self._candidates) < len(self.beams):
            return
        extended = [
            (sum(beam.log_probs) + log_prob, beam, token, log_prob)
            for beam in self.beams
            for token, log_prob in self._candidates[beam]
        ]
        extended.sort(key=lambda each: -each[0])  # stable: of equal ones the beam before goes first
        del extended[self.num_candidates :]
        self._candidates.clear()
        ended = [self._ends(beam, token) for _, beam, token, _ in extended]
        for (_, beam, token, log_prob), ends in list(zip(extended, ended, strict=True))[: self.params.num_beams]:
            if ends:
                self._complete(beam, token, log_prob)
        self.results = sorted(self.results, key=lambda result: -result.score)[: self.params.num_beams]
        chosen = [each for each, ends in zip(extended, ended, strict=True) if not ends][: self.params.num_beams]
        if not chosen or self._is_over(chosen[0][0], len(chosen[0][1].ids) + 1):
            self.finish(scheduler)
        else:
            self._go_on([(beam, token, log_prob) for _, beam, token, log_prob in chosen], scheduler)

    def finish(self, scheduler: Scheduler) -> None:
        """End the search with what has been found."""
        self.is_finished = True
        for beam in self.beams:
            beam.finish("abort", self.error)
            scheduler.remove(beam)
        self.beams = []

    def _ends(self, beam: Request, token: int) -> bool:
        return token in self._stop_ids or len(beam.ids) + 1 == self._limit

    def _complete(self, beam: Request, token: int, log_prob: float) -> None:
        log_probs = [*beam.log_probs, log_prob]
        score = sum(log_probs) / len(log_probs) ** self.params.length_penalty
        reason: FinishReason = "stop" if token in self._stop_ids else "length"
        self.results.append(Hypothesis([*beam.ids, token], log_probs, score, reason))

    def _is_over(self, best: float, length: int) -> bool:
        """Whether no beam can be expected to beat what has been found; the best of them has this log-probability."""
        if len(self.results) < self.params.num_beams:
            return False
        if self.params.early_stopping is True:
            return True
        longest = self.params.early_stopping == "never" and self.params.length_penalty > 0.0
        return best / (self._limit if longest else length) ** self.params.length_penalty <= self.results[-1].score

    def _go_on(self, chosen: list[tuple[Request, int, float]], scheduler: Scheduler) -> None:
        """Each beam goes on with the first token that was chosen for it, copies of it with the others."""
        parents = {beam for beam, _, _ in chosen}
        for beam in self.beams:
            if beam not in parents:
                beam.finish("abort")
                scheduler.remove(beam)
        taken: set[Request] = set()
        children = []
        for beam, token, log_prob in chosen:
            child = beam if beam not in taken else self._copy(beam, scheduler)
            taken.add(beam)
            children.append((child, token, log_prob))
        for child, token, log_prob in children:
            child.append(token, log_prob)
        self.beams = [child for child, _, _ in children]

    def _copy(self, beam: Request, scheduler: Scheduler) -> Request:
        child = self._make()
        child.beams, child.priority = self, beam.priority
        child.arrival, child.submitted_s = beam.arrival, beam.submitted_s
        child.ids, child.log_probs, child.token_ids = list(beam.ids), list(beam.log_probs), list(beam.token_ids)
        scheduler.fork(beam, child)
        return child
