"""The engine: requests in, tokens out, many requests at a time.

There are no prefill and decode phases. A request has `num_computed_tokens`, which catches up with its
`num_tokens` under a budget of tokens a step; once it has, a token is chosen, which is the next to catch up with.
Continuous batching and chunked prefill follow from this one rule.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.engine.cache import CacheContext, Chunk, KVCache
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.sampler import Sampler
from tallow.engine.text import OutputText
from tallow.errors import DataError, UsageError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer

SCORED_AT_ONCE = 256
"""Tokens whose logits over the whole vocabulary are held together while scoring."""


@dataclass(frozen=True)
class EngineState:
    """What the engine holds at the moment.

    Args:
        waiting: Requests that have not begun.
        running: Requests that have.
        cached_tokens: Tokens whose keys and values are kept.
        cache_bytes: Memory of these buffers.
    """

    waiting: int
    running: int
    cached_tokens: int
    cache_bytes: int


class Engine:
    """Generates for many requests at once; not for use from several threads at the same time.

    Args:
        model: In evaluation mode, on the device where it is to run.
        tokenizer: Turns tokens into text; None for token ids only.
        max_tokens_per_step: Token budget of a step: bounds its time and memory.
        max_running: Most requests at a time; each holds a cache. The others wait.

    Raises:
        UsageError: A limit is not positive.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        *,
        max_tokens_per_step: int = 2048,
        max_running: int = 64,
    ) -> None:
        if max_tokens_per_step < 1 or max_running < 1:
            raise UsageError("max_tokens_per_step and max_running must be positive", "leave them at their defaults")
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens_per_step = max_tokens_per_step
        self.max_running = max_running
        self.context_length = context_length(model.config)
        self.eos_ids = frozenset(model.config.eos_ids)
        if tokenizer is not None and tokenizer.eos_id is not None:
            self.eos_ids |= {tokenizer.eos_id}
        self._requests: list[Request] = []

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """Put a request in the queue; it takes part from the next step on.

        Raises:
            UsageError: The prompt is empty, is not of this vocabulary, or leaves no room for an answer.
        """
        prompt_ids = tuple(map(operator.index, prompt_ids))
        self.check(prompt_ids, room_for=1)
        if params.stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer", "use stop_ids, or give the engine a tokenizer")
        output = OutputText(StreamDecoder(self.tokenizer), params.stop) if self.tokenizer is not None else None
        request = Request(
            prompt_ids=prompt_ids,
            params=params,
            limit=min(params.max_new_tokens, self.context_length - len(prompt_ids)),
            stop_ids=frozenset(params.stop_ids) | (frozenset() if params.ignore_eos else self.eos_ids),
            sampler=Sampler(params, prompt_ids),
            cache=KVCache(self.model.config.num_layers),
            output=output,
        )
        self._requests.append(request)
        return request

    def step(self) -> list[Request]:
        """One pass of the model over the next tokens of as many requests as the budget allows, oldest first.

        Returns:
            The requests that got a token, or were given up (see `Request.error`).
        """
        scheduled = self._schedule()
        if not scheduled:
            return []
        chunks = [Chunk(request.cache, request.num_computed_tokens, count) for request, count in scheduled]
        ids, ready, last_rows = [], [], []
        for request, count in scheduled:
            ids += request.next_ids(count)
            if count == request.num_new_tokens:
                ready.append(request)
                last_rows.append(len(ids) - 1)
        with torch.inference_mode():
            hidden_TD = self._run(chunks, ids)
            chosen = self._choose(ready, self._logits(hidden_TD[last_rows])) if ready else []
        # requests change only here, so that a step that is interrupted before can simply be done again
        for request, count in scheduled:
            request.num_computed_tokens += count
        for request, choice in zip(ready, chosen, strict=True):
            if choice is None:
                request.finish(
                    "abort",
                    DataError(f"the model's logits after token {request.num_tokens} are not finite", _NOT_FINITE),
                )
            else:
                request.append(*choice)
        self._requests = [request for request in self._requests if request.state is not RequestState.FINISHED]
        return ready

    def abort(self, request: Request) -> None:
        """End a request now and free its memory; nothing happens if it has ended already."""
        if request.state is not RequestState.FINISHED:
            request.finish("abort")
            self._requests.remove(request)

    @property
    def state(self) -> EngineState:
        running = [request for request in self._requests if request.state is RequestState.RUNNING]
        return EngineState(
            waiting=len(self._requests) - len(running),
            running=len(running),
            cached_tokens=sum(request.num_computed_tokens for request in running),
            cache_bytes=sum(request.cache.nbytes for request in running),
        )

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Log-probability of each token but the first, given all before it: T - 1 values, fp32.

        Computed as generation computes them: in chunks, with a cache.

        Raises:
            UsageError: There are no ids, or they are not of this vocabulary, or longer than the context.
        """
        ids = tuple(map(operator.index, ids))
        self.check(ids, room_for=0)
        with torch.inference_mode():
            parts = self._score(ids)
        return torch.cat(parts)  # outside, for else the result could not take part in a loss

    def check(self, ids: Sequence[int], *, room_for: int) -> None:
        """Whether the model can take these tokens and `room_for` more.

        Raises:
            UsageError: It cannot.
        """
        if not ids:
            raise UsageError("the prompt is empty", "give at least one token")
        vocab_size = self.model.config.vocab_size
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(id for id in ids if not 0 <= id < vocab_size)
            raise UsageError(
                f"token {wrong} is not in the model's vocabulary of {vocab_size}",
                "the tokens come from a tokenizer of another model",
            )
        if len(ids) + room_for > self.context_length:
            raise UsageError(
                f"{len(ids)} tokens do not fit into the model's context of {self.context_length}"
                + (" with room for an answer" if room_for else ""),
                "shorten the prompt",
            )

    @property
    def _device(self) -> torch.device:
        return self.model.norm.weight.device

    def _schedule(self) -> list[tuple[Request, int]]:
        """Which requests take part in this step, and with how many tokens."""
        budget, scheduled = self.max_tokens_per_step, []
        for request in self._requests[: self.max_running]:
            if budget == 0:
                break
            count = min(budget, request.num_new_tokens)
            budget -= count
            request.state = RequestState.RUNNING
            scheduled.append((request, count))
        return scheduled

    def _run(self, chunks: Sequence[Chunk], ids: Sequence[int]) -> Tensor:
        """Hidden states of all tokens of all chunks, T D."""
        inputs_BT = torch.tensor([ids], device=self._device)
        return self.model(inputs_BT, CacheContext(chunks, self._device))[0]

    def _score(self, ids: Sequence[int]) -> list[Tensor]:
        cache, parts = KVCache(self.model.config.num_layers), []
        for start in range(0, len(ids), self.max_tokens_per_step):
            chunk = ids[start : start + self.max_tokens_per_step]
            hidden_TD = self._run([Chunk(cache, start, len(chunk))], chunk)
            targets_T = torch.tensor(ids[start + 1 : start + 1 + len(chunk)], dtype=torch.int64, device=self._device)
            scored = hidden_TD[: len(targets_T)].split(SCORED_AT_ONCE), targets_T.split(SCORED_AT_ONCE)
            for some_TD, some_targets_T in zip(*scored, strict=True):
                log_probs_TV = self._logits(some_TD).log_softmax(-1)
                parts.append(log_probs_TV.gather(1, some_targets_T[:, None])[:, 0])
        return parts

    def _logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits, T V, fp32."""
        return self.model.logits(hidden_TD[None])[0].float()

    def _choose(self, requests: Sequence[Request], logits_RV: Tensor) -> list[tuple[int, float] | None]:
        """The next token of each request and its log-probability; None where the logits are no distribution."""
        choices: list[tuple[int, float] | None] = []
        log_probs_RV = logits_RV.log_softmax(-1)
        for request, logits_V, log_probs_V in zip(requests, logits_RV, log_probs_RV, strict=True):
            # a NaN or +inf among the logits makes all log-probabilities NaN
            if math.isnan(float(log_probs_V[0])):
                choices.append(None)
            else:
                token = request.sampler.choose(logits_V, request.ids)
                choices.append((token, float(log_probs_V[token])))
        return choices


_NOT_FINITE = "its weights are damaged, or overflow in this precision: try bf16 or fp32"


def context_length(config: DecoderConfig) -> int:
    """Longest sequence in tokens, prompt and answer together.

    LongRoPE has other frequencies beyond the trained length than within it, and the keys in the cache would be of the
    wrong ones once a sequence grows past it; there the trained length is the limit.
    """
    scaling = config.rotary.scaling
    if config.positions == "rotary" and scaling is not None and scaling.kind == "longrope":
        return min(config.max_positions, scaling.original_max_positions or config.max_positions)
    return config.max_positions
