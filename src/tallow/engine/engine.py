"""The engine: requests in, tokens out, many requests at a time.

A step takes what the scheduler gives it, lets the runner compute it, and lets the samplers choose what follows.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tallow.engine.adapters import AdapterRegistry, LoadedAdapter
from tallow.engine.beam_search import BeamParams, BeamSearch
from tallow.engine.block_tables import BlockTables
from tallow.engine.blocks import BlockPool
from tallow.engine.checks import whole_number, whole_numbers
from tallow.engine.policies import POLICIES, PolicyName
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.run_ahead import RUN_AHEAD_S, RunAhead
from tallow.engine.runner import Floats, Runner, context_length
from tallow.engine.sampler import Sampler
from tallow.engine.scheduler import Scheduler, Share
from tallow.engine.speculation import Proposer, Speculation
from tallow.engine.step import Step
from tallow.engine.structure import CompileLimits
from tallow.engine.text import OutputText
from tallow.engine.uninterrupted import uninterrupted
from tallow.errors import UsageError
from tallow.kernels.memory import machine_bytes
from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tallow.engine.grammar import Constraint, Grammars

MAX_RUNNING = 64
MAX_ANSWERS = 1024
"""To one prompt: each is a request with all that belongs to it, made before the first of them runs."""

CACHE_SHARE = 8
"""The cache may take this part of the memory of the machine, or of its GPU, if nothing else is said."""

NOTHING_READY_S = 0.02
"""How long a step waits where all requests wait for their structures to be compiled."""

SCORING = SamplingParams(max_new_tokens=0, prompt_log_probs=True)


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
        guessed_tokens: Tokens of answers that were guessed before they were computed.
        accepted_tokens: Those of them that turned out right.
    """

    waiting: int
    running: int
    cached_tokens: int
    free_blocks: int
    num_blocks: int
    preemptions: int
    queried_tokens: int
    hit_tokens: int
    guessed_tokens: int
    accepted_tokens: int


class Engine:
    """Generates for many requests at once; not for use from several threads at the same time.

    Args:
        runner: Computes the model.
        tokenizer: Turns tokens into text; None for token ids only.
        max_tokens_per_step: Token budget of a step: bounds its time and memory.
        max_running: Most requests at a time that hold blocks of the cache. The others wait.
        cache_bytes: Memory for keys and values, taken as it fills; None: an eighth of the machine's, but not more than
            `max_running` requests of full length could use.
        policy: Who goes first: `first-come`, `priority` (that of the requests) or `shortest` (remaining job).
        proposer: Guesses next tokens (speculative decoding), as long as that makes answers come sooner.
        compile_limits: What compiling a request's structure may take.
        run_ahead_s: While no request waits, a step may go on for so long, a token more of each request after the other;
            0: a token a step.

    Raises:
        UsageError: A limit is no positive number, the cache too small for anything, or the policy unknown.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None,
        *,
        max_tokens_per_step: int = 512,
        max_running: int = MAX_RUNNING,
        cache_bytes: int | None = None,
        policy: PolicyName = "first-come",
        proposer: Proposer | None = None,
        compile_limits: CompileLimits | None = None,
        run_ahead_s: float = RUN_AHEAD_S,
    ) -> None:
        max_tokens_per_step = whole_number("max_tokens_per_step", max_tokens_per_step)
        max_running = whole_number("max_running", max_running)
        if max_tokens_per_step < 1 or max_running < 1:
            raise UsageError("max_tokens_per_step and max_running must be positive", "leave them at their defaults")
        if policy not in POLICIES:
            raise UsageError(f"policy {policy!r} is unknown", f"choose one of {', '.join(POLICIES)}")
        self.runner = runner
        self.tokenizer = tokenizer
        self.policy: PolicyName = policy
        self.eos_ids = frozenset(runner.config.eos_ids)
        if tokenizer is not None and tokenizer.eos_id is not None:
            self.eos_ids |= {tokenizer.eos_id}
        self.eos_ids &= frozenset(range(runner.config.vocab_size))  # another never comes, and cannot be held back
        longest = context_length(runner.config)
        self._step_tokens = max_tokens_per_step
        most = machine_bytes(runner.device) // CACHE_SHARE
        given = whole_number("cache_bytes", cache_bytes) if cache_bytes is not None else most
        num_blocks = min(max_running * self._most_blocks(longest), given // runner.block_bytes)
        self.context_length = bisect_right(range(longest + 1), num_blocks, key=self._most_blocks) - 1
        if self.context_length < 1:
            raise UsageError(
                f"a cache of {given:,} bytes cannot hold one block of {runner.block_bytes:,} for each group of layers",
                "raise cache_bytes",
            )
        runner.allocate(num_blocks)
        self._pool = BlockPool(num_blocks)
        self._scheduler = Scheduler(self._pool, POLICIES[policy], max_tokens_per_step, max_running)
        self._speculation = Speculation(proposer)
        self._run_ahead = RunAhead(run_ahead_s)
        self._adapters = AdapterRegistry(runner)
        self._is_unchecked = False
        self._compile_limits = compile_limits or CompileLimits()
        self._grammars: Grammars | None = None

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        cache_salt: Hashable = None,
        adapter: str | None = None,
        priority: int = 0,
    ) -> Request:
        """Put a request in the queue; it takes part from one of the next steps on.

        Args:
            prompt_ids: The tokens to continue.
            params: How, and how far.
            cache_salt: Requests with another salt do not share what is cached of their beginnings, so that nobody
                learns from the time that an answer takes what others have asked.
            adapter: The name of a loaded adapter to compute it with.
            priority: Those with a smaller one go first, if that is the engine's policy.

        Raises:
            UsageError: The prompt is empty, is not of this vocabulary, or leaves no room for an answer; or something is
                asked for that this engine does not have.
        """
        [request] = self.submit_many(prompt_ids, params, 1, cache_salt=cache_salt, adapter=adapter, priority=priority)
        return request

    def submit_many(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        count: int,
        *,
        cache_salt: Hashable = None,
        adapter: str | None = None,
        priority: int = 0,
    ) -> list[Request]:
        """Several answers to one prompt, which is computed once; they part where they begin to differ.

        Args:
            prompt_ids: The tokens to continue.
            params: How, and how far; the seeds of the answers are this one and those after it.
            count: How many, at most `MAX_ANSWERS`.
            cache_salt, adapter, priority: As for `submit`.

        Raises:
            UsageError: As for `submit`, or no answer is wanted, or too many.
        """
        if not 1 <= whole_number("the number of answers", count) <= MAX_ANSWERS:
            raise UsageError(f"{count:,} answers to one prompt cannot be given", f"ask for 1 to {MAX_ANSWERS:,}")
        prompt_ids = whole_numbers("the prompt", prompt_ids)
        self.check(prompt_ids, room_for=min(1, params.max_new_tokens))
        if params.stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer", "use stop_ids, or give the engine a tokenizer")
        make = self._request_maker(prompt_ids, cache_salt, adapter, priority)
        requests = [make(params.with_seed_after(index)) for index in range(count)]
        requests[0].followers = requests[1:]
        self._scheduler.add(requests[0])
        return requests

    def search(
        self,
        prompt_ids: Sequence[int],
        params: BeamParams,
        *,
        cache_salt: Hashable = None,
        adapter: str | None = None,
        priority: int = 0,
    ) -> BeamSearch:
        """Put a beam search in the queue.

        Args:
            prompt_ids: The tokens to continue.
            params: How, and how far.
            cache_salt, adapter, priority: As for `submit`.

        Raises:
            UsageError: As for `submit`, or so many beams do not fit into the cache.
        """
        prompt_ids = whole_numbers("the prompt", prompt_ids)
        self.check(prompt_ids, room_for=1)
        sampling = SamplingParams(
            max_new_tokens=params.max_new_tokens, stop_ids=params.stop_ids, ignore_eos=params.ignore_eos
        )
        make = self._request_maker(prompt_ids, cache_salt, adapter, priority)
        first = make(sampling)
        if params.num_beams > self._scheduler.max_running:
            raise UsageError(
                f"{params.num_beams} beams are more than the {self._scheduler.max_running} requests at a time",
                "take fewer, or raise max_running",
            )
        if params.num_beams * self._most_blocks(len(prompt_ids) + first.limit) > self._pool.num_blocks:
            raise UsageError(
                f"{params.num_beams} beams of {len(prompt_ids) + first.limit} tokens do not fit into the cache",
                "take fewer or shorter ones, or raise cache_bytes",
            )
        search = BeamSearch(params, first, lambda: make(sampling))
        self._scheduler.add(first)
        return search

    def submit_embedding(
        self,
        prompt_ids: Sequence[int],
        *,
        cache_salt: Hashable = None,
        adapter: str | None = None,
        priority: int = 0,
    ) -> Request:
        """Put a request in the queue whose result is the `embedding` of its tokens; it has no answer.

        Args:
            prompt_ids: The tokens.
            cache_salt, adapter, priority: As for `submit`.

        Raises:
            UsageError: As for `submit`; but the tokens may fill the context.
        """
        prompt_ids = whole_numbers("the prompt", prompt_ids)
        self.check(prompt_ids, room_for=0)
        request = self._request_maker(prompt_ids, cache_salt, adapter, priority)(SamplingParams())
        request.limit, request.wants_embedding = 0, True
        self._scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """One pass of the model over the next tokens of as many requests as the budget allows.

        If all that there is waits for structures to be compiled, it waits a moment for them. If nothing is left to do,
        the books of the cache are checked, once.

        Returns:
            The requests that got tokens, or have come to an end (see `Request.error`).
        """
        begin = time.perf_counter()
        with uninterrupted():
            given_up = self._give_up_uncompiled()
            shares = self._scheduler.schedule()
            for share in shares:
                for source, target in share.copies:
                    self.runner.copy_block(source, target)
            most_passes = self._run_ahead.most_passes(shares, self._scheduler)
        if not shares:
            if self._grammars is not None and self._scheduler.waiting and not given_up:
                self._grammars.wait(NOTHING_READY_S)
            if self._is_unchecked and self.is_idle:
                self.check_blocks()
                self._is_unchecked = False
            return given_up
        self._is_unchecked = True
        passes = min(most_passes, self._speculation.steps_to_probe([share.request for share in shares]))
        if passes > 1:
            guesses, passes = {}, self._run_ahead.take_room(shares, self._scheduler, passes)
        else:
            guesses = self._guess(shares, most_passes)
        step = Step(shares, guesses)
        scores = self._run_ahead.run(self.runner, step, passes)
        # requests change only here: a step that fails or is interrupted before is simply done again
        with uninterrupted():
            changed = dict.fromkeys(request for each in scores for request in step.take(each, self._scheduler))
            self._speculation.learn(step, self._run_ahead.pass_s, len(scores), time.perf_counter() - begin)
            self._adapters.free_unused(self._scheduler)
        return [*given_up, *changed]

    def abort(self, request: Request) -> None:
        """End a request now and free its memory; nothing happens if it has ended already."""
        if request.state is RequestState.FINISHED:
            return
        with uninterrupted():
            request.finish("abort")
            self._scheduler.remove(request)
            followers = [each for each in request.followers if each.state is not RequestState.FINISHED]
            if followers:  # the first of them computes the prompt for the others
                followers[0].followers = followers[1:]
                self._scheduler.add(followers[0])
            self._adapters.free_unused(self._scheduler)

    def abort_search(self, search: BeamSearch) -> None:
        """End a beam search now, with what it has found; nothing happens if it has ended already."""
        if not search.is_finished:
            with uninterrupted():
                search.finish(self._scheduler)
                self._adapters.free_unused(self._scheduler)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._scheduler.waiting and not self._scheduler.running

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """The adapters that requests can name."""
        return dict(self._adapters.loaded)

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter (a folder as the `peft` library writes them), so that requests can name it.

        Raises:
            DataError: The folder is broken, for another model, or not plain LoRA.
            UsageError: The name is empty or taken, or there are too many adapters.
            CapacityError: There is not enough memory for it.
        """
        self._adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Let no more requests name an adapter; those that have begun are finished with it, then its memory is free.

        Raises:
            UsageError: There is no adapter of this name.
        """
        self._adapters.unload(name, self._scheduler)

    @property
    def state(self) -> EngineState:
        scheduler, counts = self._scheduler, self._scheduler.counts
        followers = sum(
            follower.state is not RequestState.FINISHED for request in scheduler for follower in request.followers
        )
        return EngineState(
            waiting=len(scheduler.waiting) + followers,
            running=len(scheduler.running),
            cached_tokens=sum(request.num_computed_tokens for request in scheduler.running),
            free_blocks=self._pool.num_free,
            num_blocks=self._pool.num_blocks,
            preemptions=counts.preemptions,
            queried_tokens=counts.queried_tokens,
            hit_tokens=counts.hit_tokens,
            guessed_tokens=self._speculation.guessed_tokens,
            accepted_tokens=self._speculation.accepted_tokens,
        )

    def check_blocks(self) -> None:
        """Whether every block of the cache is accounted for.

        Raises:
            AssertionError: One is lost, or held by nobody.
        """
        self._scheduler.check()

    def log_probs(self, ids: Sequence[int], *, adapter: str | None = None) -> Floats:
        """Log-probability of each token but the first, given all before it: T - 1 values, fp32.

        A request as others are, which steps until it is done; so others go on, too.

        Args:
            ids: The tokens.
            adapter: The name of a loaded adapter to compute them with.

        Raises:
            UsageError: There are no ids, or they are not of this vocabulary or longer than the context; or there is no
                such adapter.
            DataError: The model's logits are not finite.
        """
        request = self.submit(ids, SCORING, adapter=adapter)
        try:
            while request.state is not RequestState.FINISHED:
                self.step()
        finally:
            self.abort(request)
        if request.error is not None:
            raise request.error
        return np.array(request.prompt_log_probs, dtype=np.float32)

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

    def _most_blocks(self, num_tokens: int) -> int:
        return self.runner.layout.blocks_needed(num_tokens, self._step_tokens)

    def _request_maker(
        self, prompt_ids: tuple[int, ...], cache_salt: Hashable, adapter: str | None, priority: int
    ) -> Callable[[SamplingParams], Request]:
        """What makes requests for one prompt."""
        if priority and self.policy != "priority":
            raise UsageError("this engine does not go by priorities", 'make it with policy="priority"')
        handle, vocab_size = self._adapters.handle(adapter), self.runner.config.vocab_size

        def make(params: SamplingParams) -> Request:
            for name in ("logit_bias", "stop_ids", "dry_breaker_ids"):
                if unknown := [token for token in getattr(params, name) if not 0 <= token < vocab_size]:
                    raise UsageError(
                        f"{name} has token {unknown[0]}, but the vocabulary is of {vocab_size}", "leave it out"
                    )
            stop_ids = frozenset(params.stop_ids) | (frozenset() if params.ignore_eos else self.eos_ids)
            constraint = self._constraint(params, stop_ids)
            return Request(
                prompt_ids=prompt_ids,
                params=params,
                limit=min(params.max_new_tokens, self.context_length - len(prompt_ids)),
                stop_ids=stop_ids,
                sampler=Sampler(params, prompt_ids, stop_ids, constraint),
                blocks=BlockTables(self._pool, self.runner.layout, root=(cache_salt, handle)),
                output=self._output(params),
                constraint=constraint,
                adapter=handle,
                arrival=self._scheduler.arrive(),
                priority=priority,
            )

        return make

    def _output(self, params: SamplingParams) -> OutputText | None:
        if self.tokenizer is None:
            return None
        return OutputText(StreamDecoder(self.tokenizer, shown=params.shown_special_ids), params.stop)

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
                self._scheduler.remove(request)
                given_up += [request, *request.followers]
                for each in (request, *request.followers):
                    each.finish("abort", error)
        return given_up

    def _guess(self, shares: Sequence[Share], most_passes: int) -> dict[Request, list[int]]:
        if not self._speculation.is_on:
            return {}
        adding = [
            share.request
            for share in shares
            if share.count == share.request.num_new_tokens == 1 and share.request.ids and share.request.beams is None
        ]
        spare = self._step_tokens - sum(share.count for share in shares)
        guesses = self._speculation.guess(adding, spare, most_passes)
        for request, guessed in guesses.items():
            if request.constraint is not None:
                del guessed[request.constraint.accepts(guessed) :]
            with uninterrupted():
                end = self._scheduler.extend(request, request.num_tokens + len(guessed))
            del guessed[end - request.num_tokens :]
        return guesses
