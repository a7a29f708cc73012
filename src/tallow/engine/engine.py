"""The engine: requests in, tokens out, many requests at a time.

A step takes what the scheduler gives it, lets the runner compute it, and lets the samplers choose what follows.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tallow.engine.blocks import BLOCK_TOKENS, BlockPool
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Runner, Scores, Span, context_length
from tallow.engine.sampler import Sampler
from tallow.engine.scheduler import Scheduler
from tallow.engine.structure import CompileLimits
from tallow.engine.text import OutputText
from tallow.engine.uninterrupted import uninterrupted
from tallow.errors import DataError, TallowError, UsageError
from tallow.kernels import machine_bytes
from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tallow.engine.grammar import Constraint, Grammars

SCORED_AT_ONCE = 256
"""Tokens whose logits over the whole vocabulary are held together while scoring."""

CACHE_SHARE = 8
"""The cache may take this part of the machine's memory if nothing else is said; it takes it only as it fills."""

NOTHING_READY_S = 0.02
"""How long a step waits where all requests wait for their structures to be compiled."""


@dataclass(frozen=True)
class EngineState:
    """What the engine holds at the moment.

    Args:
        waiting: Requests that hold no blocks of the cache.
        running: Requests that do.
        cached_tokens: Tokens of running requests whose keys and values are kept.
        free_blocks: Blocks of the cache that no request holds, of `num_blocks`.
        num_blocks: Blocks of the cache.
        preemptions: How often a request had to give its blocks to another and be computed again.
        queried_tokens: Tokens of prompts that were looked up in the cache.
        hit_tokens: Those of them that were found.
    """

    waiting: int
    running: int
    cached_tokens: int
    free_blocks: int
    num_blocks: int
    preemptions: int
    queried_tokens: int
    hit_tokens: int


class Engine:
    """Generates for many requests at once; not for use from several threads at the same time.

    Args:
        runner: Computes the model.
        tokenizer: Turns tokens into text; None for token ids only.
        max_tokens_per_step: Token budget of a step: bounds its time and memory.
        max_running: Most requests at a time that hold blocks of the cache. The others wait.
        cache_bytes: Memory for keys and values, taken as it fills; None: an eighth of the machine's, but not more than
            `max_running` requests of full length could use.
        compile_limits: What compiling a request's structure may take.

    Raises:
        UsageError: A limit is not positive, or the cache too small for anything.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None,
        *,
        max_tokens_per_step: int = 512,
        max_running: int = 64,
        cache_bytes: int | None = None,
        compile_limits: CompileLimits | None = None,
    ) -> None:
        if max_tokens_per_step < 1 or max_running < 1:
            raise UsageError("max_tokens_per_step and max_running must be positive", "leave them at their defaults")
        self.runner = runner
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(runner.config.eos_ids)
        if tokenizer is not None and tokenizer.eos_id is not None:
            self.eos_ids |= {tokenizer.eos_id}
        longest = context_length(runner.config)
        useful = max_running * -(-longest // BLOCK_TOKENS)
        given = cache_bytes if cache_bytes is not None else machine_bytes() // CACHE_SHARE
        num_blocks = min(useful, given // runner.block_bytes)
        if num_blocks < 1:
            raise UsageError(
                f"a cache of {given:,} bytes cannot hold one block of {runner.block_bytes:,}", "raise cache_bytes"
            )
        self.context_length = min(longest, num_blocks * BLOCK_TOKENS)
        runner.allocate(num_blocks)
        self._pool = BlockPool(num_blocks)
        self._scheduler = Scheduler(self._pool, max_tokens_per_step, max_running)
        self._compile_limits = compile_limits or CompileLimits()
        self._grammars: Grammars | None = None

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, cache_salt: Hashable = None) -> Request:
        """Put a request in the queue; it takes part from one of the next steps on.

        Args:
            prompt_ids: The tokens to continue.
            params: How, and how far.
            cache_salt: Requests with another salt do not share what is cached of their beginnings, so that nobody
                learns from the time that an answer takes what others have asked.

        Raises:
            UsageError: The prompt is empty, is not of this vocabulary, or leaves no room for an answer; or the
                parameters ask for what this engine does not have.
        """
        prompt_ids = tuple(map(operator.index, prompt_ids))
        self.check(prompt_ids, room_for=1)
        if params.stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer", "use stop_ids, or give the engine a tokenizer")
        stop_ids = frozenset(params.stop_ids) | (frozenset() if params.ignore_eos else self.eos_ids)
        vocab_size = self.runner.config.vocab_size
        if unknown := [token for token in params.logit_bias if not 0 <= token < vocab_size]:
            raise UsageError(f"logit_bias names token {unknown[0]} of a vocabulary of {vocab_size}", "leave it out")
        constraint = self._constraint(params, stop_ids)
        output = OutputText(StreamDecoder(self.tokenizer), params.stop) if self.tokenizer is not None else None
        request = Request(
            prompt_ids=prompt_ids,
            params=params,
            limit=min(params.max_new_tokens, self.context_length - len(prompt_ids)),
            stop_ids=stop_ids,
            sampler=Sampler(params, prompt_ids, stop_ids, constraint),
            output=output,
            cache_salt=cache_salt,
            constraint=constraint,
        )
        self._scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """One pass of the model over the next tokens of as many requests as the budget allows.

        If all that there is waits for structures to be compiled, it waits a moment for them.

        Returns:
            The requests that got a token, or were given up (see `Request.error`).
        """
        with uninterrupted():
            given_up = self._give_up_uncompiled()
            scheduled = self._scheduler.schedule()
        if not scheduled:
            if self._grammars is not None and self._scheduler.waiting and not given_up:
                self._grammars.wait(NOTHING_READY_S)
            return given_up
        spans, ready = [], []
        for request, count in scheduled:
            catches_up = count == request.num_new_tokens
            spans.append(Span(request.next_ids(count), request.num_computed_tokens, int(catches_up), request.blocks))
            if catches_up:
                ready.append(request)
        chosen = self._choose(ready, self.runner.run(spans))
        # requests change only here: a step that fails or is interrupted before is simply done again
        with uninterrupted():
            for request, count in scheduled:
                request.num_computed_tokens += count
                self._scheduler.publish(request)
            for request, choice in zip(ready, chosen, strict=True):
                self._advance(request, choice)
        return given_up + ready

    def abort(self, request: Request) -> None:
        """End a request now and free its memory; nothing happens if it has ended already."""
        if request.state is not RequestState.FINISHED:
            with uninterrupted():
                request.finish("abort")
                self._scheduler.remove(request)

    @property
    def state(self) -> EngineState:
        scheduler, counts = self._scheduler, self._scheduler.counts
        return EngineState(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            cached_tokens=sum(request.num_computed_tokens for request in scheduler.running),
            free_blocks=self._pool.num_free,
            num_blocks=self._pool.num_blocks,
            preemptions=counts.preemptions,
            queried_tokens=counts.queried_tokens,
            hit_tokens=counts.hit_tokens,
        )

    def check_blocks(self) -> None:
        """Whether every block of the cache is accounted for.

        Raises:
            AssertionError: One is lost, or held by nobody.
        """
        self._scheduler.check()

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Log-probability of each token but the first, given all before it: T - 1 values, fp32.

        Computed as generation computes them: in chunks, with the cache.

        Raises:
            UsageError: There are no ids, they are not of this vocabulary or longer than the context, or the cache is
                full of running requests.
        """
        ids = tuple(map(operator.index, ids))
        self.check(ids, room_for=0)
        needed = -(-len(ids) // BLOCK_TOKENS)
        if needed > self._pool.num_free:
            raise UsageError("running requests hold the cache, so no text can be scored", "finish or abort them first")
        blocks = array("i")
        try:
            with uninterrupted():
                blocks.extend(self._pool.allocate(needed))
            return self._score(ids, blocks)
        finally:
            self._pool.release(blocks)

    def check(self, ids: Sequence[int], *, room_for: int) -> None:
        """Whether the engine can take these tokens and `room_for` more.

        Raises:
            UsageError: It cannot.
        """
        if not ids:
            raise UsageError("the prompt is empty", "give at least one token")
        vocab_size = self.runner.config.vocab_size
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(id for id in ids if not 0 <= id < vocab_size)
            raise UsageError(
                f"token {wrong} is not in the model's vocabulary of {vocab_size}",
                "the tokens come from a tokenizer of another model",
            )
        if len(ids) + room_for > self.context_length:
            limit = "cache" if self.context_length < context_length(self.runner.config) else "model's context"
            raise UsageError(
                f"{len(ids)} tokens do not fit into the {limit} of {self.context_length}"
                + (" with room for an answer" if room_for else ""),
                "shorten the prompt" if limit != "cache" else "shorten the prompt or raise cache_bytes",
            )

    def _constraint(self, params: SamplingParams, stop_ids: frozenset[int]) -> Constraint | None:
        if params.structure is None:
            return None
        if self.tokenizer is None:
            raise UsageError("a structure needs a tokenizer", "give the engine one")
        if self._grammars is None:
            from tallow.engine.grammar import Grammars  # its library takes a while to load

            vocab_size = self.runner.config.vocab_size
            self._grammars = Grammars(self.tokenizer, vocab_size, self.eos_ids, self._compile_limits)
        return self._grammars.constraint(params.structure, stop_ids)

    def _give_up_uncompiled(self) -> list[Request]:
        """End the requests whose structures cannot be compiled."""
        given_up = []
        for request in list(self._scheduler.waiting):
            if request.constraint is not None and (error := request.constraint.error) is not None:
                request.finish("abort", error)
                self._scheduler.remove(request)
                given_up.append(request)
        return given_up

    def _advance(self, request: Request, choice: tuple[int, float] | TallowError) -> None:
        try:
            if isinstance(choice, TallowError):
                raise choice
            request.append(*choice)
        except TallowError as error:
            request.finish("abort", error)
        if request.state is RequestState.FINISHED:
            self._scheduler.remove(request)

    def _score(self, ids: Sequence[int], blocks: array[int]) -> Tensor:
        parts = []
        for start in range(0, len(ids) - 1, SCORED_AT_ONCE):
            chunk, targets = ids[start : start + SCORED_AT_ONCE], ids[start + 1 : start + 1 + SCORED_AT_ONCE]
            chunk = chunk[: len(targets)]
            scores = self.runner.run([Span(chunk, start, len(chunk), blocks)])
            targets_T = torch.tensor(targets, device=scores.logits_RV.device)
            with torch.inference_mode():
                target_logits_T = scores.logits_RV.gather(1, targets_T[:, None])[:, 0].cpu()
            parts.append(target_logits_T - torch.tensor(scores.log_sum_exp))
        return torch.cat([torch.empty(0), *parts])

    def _choose(self, requests: Sequence[Request], scores: Scores) -> list[tuple[int, float] | TallowError]:
        """The next token of each request and its log-probability, or why there is none."""
        choices: list[tuple[int, float] | TallowError] = []
        for row, request in enumerate(requests):
            log_sum_exp = scores.log_sum_exp[row]
            if math.isnan(log_sum_exp):
                where = f"the model's logits after token {request.num_tokens} are not finite"
                choices.append(DataError(where, _NOT_FINITE))
            elif request.sampler.is_greedy:
                choices.append((scores.likeliest[row], scores.greatest[row] - log_sum_exp))
            else:
                logits_V = scores.logits_RV[row]
                try:
                    with torch.inference_mode(), _single_thread():
                        token = request.sampler.choose(logits_V, request.ids)
                except UsageError as error:
                    choices.append(error)
                else:
                    choices.append((token, float(logits_V[token]) - log_sum_exp))
        return choices


@contextmanager
def _single_thread() -> Iterator[None]:
    """Let torch compute with one thread in this block.

    The operations of a sampler are short, and the threads that torch takes for them go on spinning for milliseconds
    after each: on the cores that the runner's own threads need for the next step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_NOT_FINITE = "its weights are damaged, or overflow in this precision: try bf16 or fp32"
