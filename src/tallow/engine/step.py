"""One step of the engine: from shares of requests to spans for the runner, and from its logits to their next tokens."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tallow.engine.request import Request, RequestState, TopLogProbs
from tallow.engine.runner import Floats, Scores, Span
from tallow.engine.scheduler import Scheduler, Share
from tallow.errors import DataError, TallowError, UsageError
from tallow.kernels.sampling import Draw, choose_tokens

LEAST_LENGTH = 1e-12
"""A hidden state that is shorter is not brought to length 1."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes of one request.

    Args:
        share: Its tokens.
        guesses: What may come after them.
        wanted: How many of the last rows of its span get logits.
        first_row: The first of them, counted through all spans.
        catches_up: Whether the request's next token can be chosen.
    """

    share: Share
    guesses: list[int]
    wanted: int
    first_row: int
    catches_up: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A request whose next token is chosen from this row of logits; behind it come rows that suppose the guesses."""

    request: Request
    row: int
    guesses: list[int]


class Step:
    """What requests compute together.

    Args:
        shares: What each is given.
        guesses: Tokens that may come after those of a share.
    """

    def __init__(self, shares: Sequence[Share], guesses: Mapping[Request, list[int]]) -> None:
        self.spans: list[Span] = []
        self.parts: list[Part] = []
        row = 0
        for share in shares:
            request, guessed = share.request, guesses.get(share.request, [])
            catches_up = share.count == request.num_new_tokens
            wanted = len(guessed) + (share.count if request.prompt_scores_missing else int(catches_up))
            tokens = [*request.next_ids(share.count), *guessed]
            self.spans.append(Span(tokens, request.num_computed_tokens, wanted, request.blocks.tables, request.adapter))
            self.parts.append(Part(share, guessed, wanted, row, catches_up))
            row += wanted
        self.num_rows = row if row == sum(len(span.tokens) for span in self.spans) else None
        """How many tokens it computes, if all of them get logits."""

    def take(self, scores: Scores, scheduler: Scheduler) -> list[Request]:
        """Give every request what the logits say; of several passes those of one after the other.

        Returns:
            Those that got tokens or came to an end.
        """
        # who has come to an end in an earlier pass needs no more
        parts = [part for part in self.parts if part.share.request.state is not RequestState.FINISHED]
        turns = [turn for part in parts for turn in self._begin(part, scores, scheduler)]
        changed = [turn.request for turn in turns]
        while turns:
            turns = _choose(turns, scores)
        requests = dict.fromkeys([*(part.share.request for part in parts), *changed])
        for request in requests:
            # prompts that are only scored may be thousands, and what they leave in the cache is of no use to each other
            if request.limit > 0 or request.wants_embedding:
                request.blocks.publish(request.token_ids, request.num_computed_tokens)
            request.blocks.let_go_unseen(request.num_computed_tokens)
            if request.state is RequestState.FINISHED:
                scheduler.remove(request)
        ended = [
            each
            for request in requests
            if request.state is RequestState.FINISHED
            for each in (request, *request.followers)  # they end with a prompt that cannot be scored
        ]
        for search in dict.fromkeys(request.beams for request in requests if request.beams is not None):
            search.advance(scheduler)
        return list(dict.fromkeys([*changed, *ended]))

    def accepted(self) -> Iterator[tuple[Request, int, int]]:
        """After `take`: whose tokens were guessed, how many, and how many of them were right."""
        for span, part in zip(self.spans, self.parts, strict=True):
            if part.guesses:
                request = part.share.request
                yield request, len(part.guesses), request.num_computed_tokens - span.start - part.share.count

    def _begin(self, part: Part, scores: Scores, scheduler: Scheduler) -> list[_Turn]:
        """Take note of what has been computed; returns the turns to choose a token."""
        request = part.share.request
        request.num_computed_tokens += part.share.count
        if request.prompt_scores_missing:
            _score_prompt(request, part, scores)
        if not part.catches_up or request.state is RequestState.FINISHED:
            return []
        row = part.first_row + part.wanted - 1 - len(part.guesses)
        if request.wants_embedding:
            _embed(request, row, scores)
            return []
        if request.beams is not None:
            if math.isnan(scores.log_sum_exp[row]):
                request.beams.fail(_not_finite(request.num_tokens))
            else:
                request.beams.put(request, _candidates(scores, row, request.beams.num_candidates))
            return []
        waiting = [follower for follower in request.followers if follower.state is not RequestState.FINISHED]
        request.followers = []
        for follower in waiting:
            follower.prompt_log_probs = list(request.prompt_log_probs)
            follower.prompt_top_log_probs = list(request.prompt_top_log_probs)
        begin = [request, *(follower for follower in waiting if scheduler.fork(request, follower))]
        return [_Turn(each, row, part.guesses) for each in begin]


def _choose(turns: Sequence[_Turn], scores: Scores) -> list[_Turn]:
    """Give each request its next token; returns the turns of those for whom it was as they had guessed."""
    right = []
    to_draw = [turn for turn in turns if turn.request.limit > 0 and not turn.request.sampler.is_greedy]
    tokens = {} if scores.are_drawn else _draw(to_draw, scores)
    for turn in turns:
        request, log_sum_exp = turn.request, scores.log_sum_exp[turn.row]
        if request.limit == 0:
            request.finish("length")
            continue
        token = tokens.get(turn, scores.tokens[turn.row])
        try:
            if math.isnan(log_sum_exp):
                raise _not_finite(request.num_tokens)
            if isinstance(token, TallowError):
                raise token
            logits_V = scores.logits_RV[turn.row]
            logit = float(logits_V[token]) if turn in tokens else scores.logits[turn.row]
            count = request.params.top_log_probs
            request.append(token, logit - log_sum_exp, _likeliest(logits_V, log_sum_exp, count) if count else None)
        except TallowError as error:
            request.finish("abort", error)
        else:
            if turn.guesses and token == turn.guesses[0] and request.state is not RequestState.FINISHED:
                request.num_computed_tokens += 1
                right.append(_Turn(request, turn.row + 1, turn.guesses[1:]))
    return right


def _draw(turns: Sequence[_Turn], scores: Scores) -> dict[_Turn, int | TallowError]:
    """The tokens of those who do not take the likeliest, or why there is none."""
    prepared: dict[_Turn, tuple[Floats, Draw]] = {}
    chosen: dict[_Turn, int | TallowError] = {}
    for turn in turns:
        try:
            prepared[turn] = turn.request.sampler.prepare(scores.logits_RV[turn.row], turn.request.ids)
        except TallowError as error:
            chosen[turn] = error
    tokens = choose_tokens([row_V for row_V, _ in prepared.values()], [draw for _, draw in prepared.values()])
    for turn, token in zip(prepared, tokens, strict=True):
        where = f"penalties and biases leave no token that could follow token {turn.request.num_tokens}"
        chosen[turn] = token if token >= 0 else UsageError(where, "weaken them")
    return chosen


def _score_prompt(request: Request, part: Part, scores: Scores) -> None:
    """Log-probabilities of the tokens of the prompt that follow those just computed; without them, it is given up."""
    first = len(request.prompt_log_probs) + 1
    wanted_ids = request.prompt_ids[first : request.num_computed_tokens + 1]
    row = part.first_row + first - (request.num_computed_tokens - part.share.count + 1)
    logits_TV = scores.logits_RV[row : row + len(wanted_ids)]
    log_sum_exp_T = scores.log_sum_exp[row : row + len(wanted_ids)]
    if (broken := next((index for index, value in enumerate(log_sum_exp_T) if math.isnan(value)), None)) is not None:
        request.followers = [each for each in request.followers if each.state is not RequestState.FINISHED]
        for each in (request, *request.followers):
            each.finish("abort", _not_finite(first + broken))
        return
    logits_T = logits_TV[np.arange(len(wanted_ids)), list(wanted_ids)]
    request.prompt_log_probs += map(operator.sub, logits_T.tolist(), log_sum_exp_T)
    if count := request.params.top_log_probs:
        request.prompt_top_log_probs += map(_likeliest, logits_TV, log_sum_exp_T, itertools.repeat(count))


def _embed(request: Request, row: int, scores: Scores) -> None:
    """The end of a request for an embedding: the hidden state of this row, at length 1."""
    if math.isnan(scores.log_sum_exp[row]):
        request.finish("abort", _not_finite(request.num_tokens))
        return
    hidden_D = scores.hidden(row).astype(np.float64)
    request.embedding = (hidden_D / max(np.linalg.norm(hidden_D), LEAST_LENGTH)).astype(np.float32)
    request.finish("stop")


def _candidates(scores: Scores, row: int, count: int) -> TopLogProbs:
    return _likeliest(scores.logits_RV[row], scores.log_sum_exp[row], count)


def _likeliest(logits_V: Floats, log_sum_exp: float, count: int) -> TopLogProbs:
    ids_C = np.sort(np.argpartition(logits_V, -count)[-count:]) if count < len(logits_V) else np.arange(len(logits_V))
    ids_C = ids_C[np.argsort(-logits_V[ids_C], kind="stable")]
    return [(token, value - log_sum_exp) for token, value in zip(ids_C.tolist(), logits_V[ids_C].tolist(), strict=True)]


def _not_finite(num_tokens: int) -> DataError:
    return DataError(
        f"the model's logits after token {num_tokens} are not finite",
        "its weights are damaged (or those in $TALLOW_HOME/packed are: delete them), or overflow in this precision: "
        "try bf16 or fp32",
    )
