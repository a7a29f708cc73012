"""What a user asks of the engine, and the life of one such request."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from tallow.engine.block_tables import BlockTables
from tallow.engine.checks import flag, number, texts, whole_number, whole_numbers
from tallow.engine.sampler import Sampler
from tallow.engine.structure import Structure
from tallow.engine.text import OutputText
from tallow.errors import TallowError, UsageError

if TYPE_CHECKING:
    from tallow.engine.beam_search import BeamSearch
    from tallow.engine.grammar import Constraint

FinishReason = Literal["stop", "length", "abort"]
MAX_SEED = 2**64 - 1
MAX_DRY_BASE = 4.0
MAX_TOP_LOG_PROBS = 100
GREATEST_CHANGE = 1e30
"""Of a logit, by a bias or a penalty: so all of them together leave it within fp32, which ends at 3.4e38."""

WHOLE_NUMBERS = ("max_new_tokens", "top_k", "min_new_tokens", "dry_allowed_length", "top_log_probs")
NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base"),
)

SCORED_AT_ONCE = 256
"""Tokens whose logits over the whole vocabulary are held together while a prompt is scored."""

TopLogProbs = list[tuple[int, float]]
"""The likeliest tokens at a place and their log-probabilities, the likeliest first."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next tokens are chosen, and when to stop.

    Logits are changed in this order: repetition penalty, frequency and presence penalties, DRY, biases, least length,
    structure, temperature. Then the filters work, in the order of `transformers`: top-k, top-p, min-p, typical.

    Args:
        max_new_tokens: Longest answer in tokens; cut to what fits into the model's context. 0 only scores the prompt.
        temperature: Logits are divided by it; 0 always takes the likeliest token.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches it (arXiv 1904.09751).
        min_p: Keep tokens at least this share as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: Positive logits of tokens in the prompt or the answer are divided by it, negative
            ones multiplied (arXiv 1909.05858, section 4.1).
        seed: Makes the answer reproducible, whatever else is in the batch; None draws one.
        stop: Strings that end the answer; the text is cut before them.
        stop_ids: Tokens that end the answer, besides the model's end tokens.
        ignore_eos: The model's end tokens do not end the answer.
        min_new_tokens: Nothing ends the answer before it has so many tokens.
        typical_p: Keep the tokens whose surprise is nearest to the expected one, up to this probability (locally
            typical sampling: arXiv 2202.00666).
        frequency_penalty: Subtracted from a token's logit for each time that it is in the answer.
        presence_penalty: Subtracted from the logits of tokens that are in the answer.
        dry_multiplier: What a token loses that would go on with a repeat of `dry_allowed_length` tokens of prompt and
            answer; 0: nothing.
        dry_base: By what that grows with each token more of the repeat.
        dry_allowed_length: Repeats of fewer tokens are let be.
        dry_breaker_ids: Tokens that end a repeat, such as those of a line end.
        logit_bias: Added to the logits of these tokens.
        top_log_probs: Name so many of the likeliest tokens at each place of the answer, with their log-probabilities.
        prompt_log_probs: Score the tokens of the prompt, too, and name the likeliest at each of their places.
        structure: What the answer must look like; None: anything.
        shown_special_ids: Special tokens that the text shows; it leaves out the others.

    Raises:
        UsageError: A value makes no sense.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # where it is part of a recipe

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breaker_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_log_probs: int = 0
    prompt_log_probs: bool = False
    structure: Structure | None = None
    shown_special_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in WHOLE_NUMBERS:
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        for name in NUMBERS:
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole_number("seed", self.seed, bits=64))
        # lists, as they come from JSON or YAML, are welcome
        for name in ("stop_ids", "dry_breaker_ids", "shown_special_ids"):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name)))
        object.__setattr__(self, "stop", texts("stop", self.stop))
        for name in ("ignore_eos", "prompt_log_probs"):
            flag(name, getattr(self, name))
        _require(
            self.structure is None or isinstance(self.structure, Structure),
            "structure",
            self.structure,
            'a tallow.Structure, such as tallow.Structure(regex="a+")',
        )
        _require(
            isinstance(self.logit_bias, Mapping), "logit_bias", self.logit_bias, "a mapping from token ids to numbers"
        )
        # JSON has ids as strings there
        ids = [int(id) if isinstance(id, str) and id.isdecimal() else id for id in self.logit_bias]
        by = [number("a bias of logit_bias", bias) for bias in self.logit_bias.values()]
        biases = dict(zip(whole_numbers("logit_bias", ids), by, strict=True))
        object.__setattr__(self, "logit_bias", biases)
        least = 0 if self.prompt_log_probs else 1
        _require(self.max_new_tokens >= least, "max_new_tokens", self.max_new_tokens, f"at least {least}")
        _require(
            0 <= self.top_log_probs <= MAX_TOP_LOG_PROBS,
            "top_log_probs",
            self.top_log_probs,
            f"from 0 to {MAX_TOP_LOG_PROBS}",
        )
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (off)")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 (off) and 1")
        _require(
            1 / GREATEST_CHANGE <= self.repetition_penalty <= GREATEST_CHANGE,
            "repetition_penalty",
            self.repetition_penalty,
            f"from {1 / GREATEST_CHANGE:g} to {GREATEST_CHANGE:g}; 1 is off",
        )
        _require(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed", self.seed, f"between 0 and {MAX_SEED}")
        _require(all(self.stop), "stop", self.stop, "strings that are not empty")
        _require(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            self.min_new_tokens,
            "from 0 to max_new_tokens",
        )
        _require(0 < self.typical_p <= 1, "typical_p", self.typical_p, "above 0 and at most 1 (off)")
        changes = f"from {-GREATEST_CHANGE:g} to {GREATEST_CHANGE:g}"
        for name in ("frequency_penalty", "presence_penalty"):
            _require(abs(getattr(self, name)) <= GREATEST_CHANGE, name, getattr(self, name), f"{changes}; 0 is off")
        _require(
            0 <= self.dry_multiplier <= GREATEST_CHANGE,
            "dry_multiplier",
            self.dry_multiplier,
            f"from 0 (off) to {GREATEST_CHANGE:g}",
        )
        _require(1 <= self.dry_base <= MAX_DRY_BASE, "dry_base", self.dry_base, f"from 1 to {MAX_DRY_BASE}")
        _require(self.dry_allowed_length >= 1, "dry_allowed_length", self.dry_allowed_length, "at least 1")
        for bias in self.logit_bias.values():
            _require(abs(bias) <= GREATEST_CHANGE, "a bias of logit_bias", bias, changes)

    def with_seed_after(self, index: int) -> SamplingParams:
        """The same with the seed of the answer that is so many after the first of several."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=(self.seed + index) % (MAX_SEED + 1))


class RequestState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """One prompt and its growing answer.

    The engine's one rule: `num_computed_tokens` catches up with `num_tokens`, and then a token is chosen.

    Args:
        prompt_ids: The prompt.
        params: As submitted.
        limit: Most new tokens, `params.max_new_tokens` cut to what fits into the context.
        stop_ids: All tokens that end the answer.
        sampler: Chooses the tokens.
        blocks: Its part of the cache.
        output: The text of the answer, None without a tokenizer.
        constraint: Holds the answer to the structure that was asked for.
        adapter: The runner's handle of the adapter that it is computed with; 0: none.
        arrival: Number of its arrival.
        priority: Those with a smaller one go first where priorities count.
        num_cached_tokens: How many of its tokens the cache had when it was last looked up, before it ran.
        ids: Tokens of the answer so far, the one that ended it included.
        log_probs: Log-probability of each of them under the model (before temperature, penalty and filters).
        top_log_probs: The likeliest tokens at each of these places, if they were asked for.
        prompt_log_probs: Log-probability of each token of the prompt but the first, if they were asked for.
        prompt_top_log_probs: The likeliest tokens at each of these places.
        wants_embedding: Whether it ends with the prompt, whose embedding is all that is wanted.
        embedding: The final hidden state of the prompt's last token, at length 1: D, fp32, if that was asked for.
        followers: Requests with the same prompt that begin with their answers when it has been computed.
        beams: The search of which it is a part.
        finish_reason: `stop` (an end token, a stop string, a complete structure, an embedding), `length`, or `abort`;
            None while it goes on.
        error: Why the engine gave it up; None if it did not.
        submitted_s, first_token_s, finished_s: Moments on the clock of `time.perf_counter`, in seconds.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    limit: int
    stop_ids: frozenset[int]
    sampler: Sampler
    blocks: BlockTables
    output: OutputText | None = None
    constraint: Constraint | None = None
    adapter: int = 0
    arrival: int = 0
    priority: int = 0

    num_cached_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    prompt_log_probs: list[float] = field(default_factory=list)
    prompt_top_log_probs: list[TopLogProbs] = field(default_factory=list)
    wants_embedding: bool = False
    embedding: npt.NDArray[np.float32] | None = None
    followers: list[Request] = field(default_factory=list)
    beams: BeamSearch | None = None
    num_computed_tokens: int = 0
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    error: TallowError | None = None
    submitted_s: float = field(default_factory=time.perf_counter)
    first_token_s: float | None = None
    finished_s: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = [*self.prompt_ids, *self.ids]

    @property
    def num_tokens(self) -> int:
        """Length of the prompt and of the answer so far."""
        return len(self.token_ids)

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_scores_missing(self) -> int:
        """Tokens of the prompt whose log-probabilities are wanted and not there yet."""
        return len(self.prompt_ids) - 1 - len(self.prompt_log_probs) if self.params.prompt_log_probs else 0

    @property
    def most_at_once(self) -> int:
        """How many of its tokens one step may compute."""
        return SCORED_AT_ONCE if self.prompt_scores_missing else len(self.token_ids)

    @property
    def is_ready(self) -> bool:
        """Whether it may be scheduled: nothing of it is still being compiled."""
        return self.constraint is None or self.constraint.is_ready

    @property
    def text(self) -> str:
        """The text of the answer as far as it may be shown: it only grows, and never holds a stop string or a part."""
        return self.output.text if self.output is not None else ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has ended the answer; None if none has."""
        return self.output.stopped_by if self.output is not None else None

    def next_ids(self, count: int) -> list[int]:
        """The next `count` tokens that the model has to see."""
        return self.token_ids[self.num_computed_tokens : self.num_computed_tokens + count]

    def append(self, token: int, log_prob: float, top: TopLogProbs | None = None) -> None:
        """Take the token that the sampler chose, and finish if it is the last.

        Raises:
            UsageError: Holding the answer to its structure takes more than it may.
        """
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter()
        self.ids.append(token)
        self.token_ids.append(token)
        self.log_probs.append(log_prob)
        if top is not None:
            self.top_log_probs.append(top)
        ended = token in self.stop_ids or (self.output is not None and self.output.push(token))
        if ended or (self.constraint is not None and self._completes(token, self.constraint)):
            self.finish("stop")
        elif len(self.ids) == self.limit:
            self.finish("length")

    def preempt(self) -> None:
        """Its blocks have been taken: it has to be computed again."""
        self.state, self.num_computed_tokens = RequestState.WAITING, 0
        if self.beams is not None:
            self.beams.take_back(self)

    def _completes(self, token: int, constraint: Constraint) -> bool:
        constraint.accept(token)
        return constraint.is_finished and len(self.ids) >= self.params.min_new_tokens

    def finish(self, reason: FinishReason, error: TallowError | None = None) -> None:
        """End the request; its blocks are the scheduler's to take back."""
        self.state, self.finish_reason, self.error = RequestState.FINISHED, reason, error
        self.finished_s = time.perf_counter()
        if self.output is not None:
            self.output.finish()


def _require(fits: bool, name: str, value: object, wanted: str) -> None:
    if not fits:
        raise UsageError(f"{name} is {value!r}", f"it must be {wanted}")
