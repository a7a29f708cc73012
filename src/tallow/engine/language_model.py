"""What most users hold: a model with its tokenizer that continues texts, answers messages and scores tokens."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown
from typing import TypeGuard, TypeVar

import numpy as np

from tallow.engine.beam_search import BeamParams, Hypothesis
from tallow.engine.checks import whole_number
from tallow.engine.choices import (
    CACHE_PRECISIONS,
    DEVICES,
    PLACEMENTS,
    PRECISIONS,
    CachePrecision,
    Device,
    Placement,
    Precision,
)
from tallow.engine.engine import MAX_RUNNING, SCORING, Engine
from tallow.engine.generation import Generation, Stream
from tallow.engine.policies import PolicyName
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.run_packed import load_packed, run_packed
from tallow.engine.runner import Floats, Runner, context_length
from tallow.engine.speculation import DraftModel, NgramProposer, Proposer
from tallow.errors import DataError, UsageError
from tallow.kernels.memory import machine_bytes
from tallow.models.config import DecoderConfig
from tallow.models.store import resolve
from tallow.startup import uncollected
from tallow.tokenizer.chat import Message, encode_chat_prompt, turn_end_ids
from tallow.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams()
SCORED_TOGETHER = 64
"""Sequences of a batch that the engine is given ahead: enough to fill its steps where they are short."""

MOST_DRAFTS = 64
DRAFT_CACHE_SHARE = 32
"""The cache of a draft model has room for so many sequences, but takes at most this part of the machine's memory."""

Prompt = str | Sequence[int] | Sequence[Message]
"""What can be answered.

A text is continued as it stands, after what the tokenizer puts before every text (such as a BOS token); so are token
ids. A conversation, messages with a `role` (system, user, assistant) and `content`, is put into the model's chat
template, and its answer ends with the turn.
"""

Params = TypeVar("Params", SamplingParams, BeamParams)


class LanguageModel:
    """A model, its tokenizer, and an engine that runs them; not for use from several threads at the same time.

    Args:
        runner: The model, ready to compute.
        tokenizer: Its tokenizer.
        path: Where both came from.
        proposer: Guesses next tokens (speculative decoding).
        cache_bytes, max_running, policy: As `load` says.

    Raises:
        DataError: The tokenizer has tokens that the model does not know.
        UsageError: The cache is too small for anything.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        path: Path,
        proposer: Proposer | None = None,
        cache_bytes: int | None = None,
        max_running: int = MAX_RUNNING,
        policy: PolicyName = "first-come",
    ) -> None:
        vocab_size = runner.config.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise DataError(
                f"the tokenizer of {path} has {tokenizer.vocab_size} tokens, its model only {vocab_size}",
                "the tokenizer belongs to another model",
            )
        self.tokenizer = tokenizer
        self.path = path
        self.engine = Engine(
            runner, tokenizer, proposer=proposer, cache_bytes=cache_bytes, max_running=max_running, policy=policy
        )

    @property
    def config(self) -> DecoderConfig:
        """The model's architecture."""
        return self.engine.runner.config

    @property
    def weight_bytes(self) -> int:
        """Memory of the model's weights, and of its adapters'."""
        return self.engine.runner.weight_bytes

    @property
    def context_length(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.context_length

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load a LoRA adapter, a folder as the `peft` library writes them, for calls that name it.

        Raises:
            DataError: The folder is broken, for another model, or not plain LoRA.
            UsageError: The name is empty or taken, or there are too many adapters.
            CapacityError: There is not enough memory for it.
        """
        self.engine.load_adapter(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        """Let no more calls name an adapter; answers that have begun are finished with it.

        Raises:
            UsageError: There is no adapter of this name.
        """
        self.engine.unload_adapter(name)

    def generate(self, prompt: Prompt, params: SamplingParams = GREEDY, *, adapter: str | None = None) -> Generation:
        """Answer a prompt: continue a text or token ids, or take the next turn of a conversation.

        Args:
            prompt: The text, the tokens or the messages.
            params: How, and how far.
            adapter: The name of a loaded adapter to do it with.

        Raises:
            UsageError: The prompt is no `Prompt`, is empty, not of this vocabulary, or leaves no room for an answer; or
                there is no such adapter.
            DataError: The model has no chat template, or it refuses the conversation.
        """
        return self.generate_batch([prompt], params, adapter=adapter)[0]

    def generate_batch(
        self, prompts: Sequence[Prompt], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> list[Generation]:
        """Answer many prompts at once; the same results as one by one, sooner.

        Raises:
            UsageError, DataError: As `generate`, for any of the prompts.
        """
        return self._finish(self.engine.submit(*self._turn(prompt, params), adapter=adapter) for prompt in prompts)

    def sample(
        self,
        prompt: Prompt,
        params: SamplingParams,
        n: int,
        *,
        best_of: int | None = None,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Several answers to one prompt, which is computed once.

        Args:
            prompt: As for `generate`.
            params: How, and how far; the seeds of the answers are this one and those after it.
            n: How many answers to give, at most `MAX_ANSWERS`.
            best_of: Draw so many (at most that, too), and give the `n` with the best `score`: the log-probability per
                token. None: `n`, in the order of their seeds.
            adapter: The name of a loaded adapter to do it with.

        Raises:
            UsageError: As `generate`; or no answer is wanted, or too many, `best_of` is less than `n`, or several
                answers at temperature 0, which would be the same.
            DataError: As `generate`.
        """
        drawn = whole_number("n", n) if best_of is None else whole_number("best_of", best_of)
        if not 1 <= whole_number("n", n) <= drawn:
            raise UsageError(f"{n} of {drawn} answers cannot be given", "ask for 1 at least, and draw as many or more")
        if drawn > 1 and params.temperature == 0:
            raise UsageError(
                "at temperature 0 several answers would be the same", "raise the temperature, or search with beams"
            )
        answers = self._finish(self.engine.submit_many(*self._turn(prompt, params), drawn, adapter=adapter))
        return answers if best_of is None else sorted(answers, key=lambda answer: -answer.score)[:n]

    def beam_search(
        self, prompt: Prompt, params: BeamParams | None = None, *, adapter: str | None = None
    ) -> list[Generation]:
        """The likeliest answers as a whole, the best `score` first; at most `params.num_beams`.

        Raises:
            UsageError: As `generate`, or so many beams do not fit into the cache.
            DataError: As `generate`.
        """
        ids, params = self._turn(prompt, params or BeamParams())
        search = self.engine.search(ids, params, adapter=adapter)
        [first] = search.beams
        try:
            while not search.is_finished:
                self.engine.step()
        finally:
            self.engine.abort_search(search)
        if search.error is not None:
            raise search.error
        end_s = time.perf_counter()
        first_token_s = first.first_token_s if first.first_token_s is not None else end_s
        return [
            Generation(
                prompt_ids=ids,
                ids=result.ids,
                text=self._text(result),
                finish_reason=result.finish_reason,
                log_probs=result.log_probs,
                prefill_s=first_token_s - first.submitted_s,
                decode_s=end_s - first_token_s,
                score=result.score,
            )
            for result in search.results
        ]

    def stream(self, prompt: Prompt, params: SamplingParams = GREEDY, *, adapter: str | None = None) -> Stream:
        """As `generate`, piece by piece."""
        return Stream(self.engine, self.engine.submit(*self._turn(prompt, params), adapter=adapter))

    def chat(
        self, messages: Sequence[Message], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Generation:
        """Answer a conversation, as `generate` does.

        Raises:
            UsageError, DataError: As `generate`.
        """
        return self.stream_chat(messages, params, adapter=adapter).result()

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Stream:
        """As `chat`, piece by piece."""
        ids, params = self.encode_chat(messages), self._until_turn_end(params)
        return Stream(self.engine, self.engine.submit(ids, params, adapter=adapter))

    def log_probs(self, prompt: Prompt, *, adapter: str | None = None) -> Floats:
        """Log-probability of each token of a prompt but the first, given all before it: T - 1 values, fp32.

        `encode_prompt` tells which tokens these are.

        Raises:
            UsageError: There are no tokens, or they are not of this vocabulary, or more than the context holds; or
                there is no such adapter.
            DataError: As `generate`, or the model's logits are not finite.
        """
        return self.engine.log_probs(self.encode_prompt(prompt), adapter=adapter)

    def log_probs_batch(
        self, sequences: Iterable[Sequence[int]], *, adapter: str | None = None
    ) -> Generator[Floats, None, None]:
        """As `log_probs`, of any number of sequences of token ids: in their order, some of them computed together.

        Raises:
            UsageError, DataError: As `log_probs`, when it is the sequence's turn.
        """
        left, requests = iter(sequences), deque[Request]()
        try:
            while True:
                ahead = itertools.islice(left, SCORED_TOGETHER - len(requests))
                requests.extend(self.engine.submit(ids, SCORING, adapter=adapter) for ids in ahead)
                if not requests:
                    return
                while requests[0].state is not RequestState.FINISHED:
                    self.engine.step()
                if requests[0].error is not None:
                    raise requests[0].error
                yield np.array(requests.popleft().prompt_log_probs, dtype=np.float32)
        finally:
            for request in requests:
                self.engine.abort(request)

    def embed(self, prompt: Prompt, *, adapter: str | None = None) -> Floats:
        """A prompt as a vector: the final hidden state of its last token (after the last norm), at length 1: D, fp32.

        The product of two such vectors is the cosine of the angle between them. It says how similar two texts are if
        the model was trained for that; others give a rough guess. The tokens are those of `encode_prompt`.

        Raises:
            UsageError: As `log_probs`.
            DataError: As `log_probs`.
        """
        return self.embed_batch([prompt], adapter=adapter)[0]

    def embed_batch(self, prompts: Sequence[Prompt], *, adapter: str | None = None) -> Floats:
        """Many prompts as vectors, N D, fp32: the same as one by one, sooner.

        Raises:
            UsageError, DataError: As `embed`, for any of the prompts.
        """
        requests = self._complete(
            self.engine.submit_embedding(self.encode_prompt(prompt), adapter=adapter) for prompt in prompts
        )
        vectors_ND = np.empty((len(requests), self.config.hidden_size), np.float32)
        for vector_D, request in zip(vectors_ND, requests, strict=True):
            if request.error is not None:
                raise request.error
            assert request.embedding is not None
            vector_D[:] = request.embedding
        return vectors_ND

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt.

        Raises:
            UsageError: It is neither a text nor token ids nor messages.
            DataError: It is a conversation, and the model has no chat template, or it refuses the conversation.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special_tokens=True)
        if _is_conversation(prompt):
            return self.encode_chat(prompt)
        return [token for token in prompt if not isinstance(token, Mapping)]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins; only the template writes control tokens.

        Raises:
            DataError: The model has no chat template, or it refuses the conversation.
        """
        return encode_chat_prompt(self.tokenizer, messages)

    def _turn(self, prompt: Prompt, params: Params) -> tuple[list[int], Params]:
        """The tokens of a prompt, and how to answer it."""
        return self.encode_prompt(prompt), self._until_turn_end(params) if _is_conversation(prompt) else params

    def _until_turn_end(self, params: Params) -> Params:
        return (
            params if params.ignore_eos else replace(params, stop_ids=(*params.stop_ids, *turn_end_ids(self.tokenizer)))
        )

    def _finish(self, submitted: Iterable[Request]) -> list[Generation]:
        """What requests come to."""
        return [Generation.of(request) for request in self._complete(submitted)]

    def _complete(self, submitted: Iterable[Request]) -> list[Request]:
        """Requests, when they have come to an end; if one cannot even be submitted, none is left behind."""
        requests: list[Request] = []
        try:
            for request in submitted:
                requests.append(request)
            while any(request.state is not RequestState.FINISHED for request in requests):
                self.engine.step()
        finally:
            for request in requests:
                self.engine.abort(request)
        return requests

    def _text(self, result: Hypothesis) -> str:
        ended = result.finish_reason == "stop"
        return self.tokenizer.decode(result.ids[:-1] if ended else result.ids)


def load(
    name_or_path: str | Path,
    precision: Precision = "auto",
    weights: Placement = "auto",
    *,
    device: Device = "auto",
    speculate: str | Path = "off",
    cache_precision: CachePrecision = "auto",
    cache_bytes: int | None = None,
    max_running: int = MAX_RUNNING,
    policy: PolicyName = "first-come",
    tensor_parallel: int = 1,
) -> LanguageModel:
    """Load a model that can generate.

    Args:
        name_or_path: A model directory, a GGUF file, a run directory, or a name in the local store.
        precision: `auto` leaves weights as they are stored, and computes in bf16 where they (of a quantized model: its
            norms) are bf16 and the processor has it, else in fp32. `fp32` and `bf16` convert, quantized weights too.
            `q8` and `q4` round the weights of linear layers to 8 or 4 bits in groups of 32, and compute with them as
            `auto`; of a model that is quantized in other bits, the weights that are.
        weights: `memory` holds them there. `mapped` writes them, in the form in which they are multiplied, once into a
            file and reads that as it is needed, so that a model larger than memory runs, at the pace of the disk; how
            fast that will be is said on standard error. `auto`: mapped if memory has no room for them.
        device: `cpu`, or `cuda` for a GPU; `auto`: a GPU if there is one.
        speculate: Who guesses next tokens, which the model then checks all in one pass; answers stay the same, and no
            guesses are made while they cost more time than they save. `ngram`: what followed the last tokens
            earlier, in the prompt or the answer. Else a draft model: the name or path of a smaller one with the same
            vocabulary; it computes with 8-bit weights if it is not stored in fewer. `off`: nobody.
        cache_precision: What keys and values are held in: `fp32`, `bf16`, or `q8` (8 bits), of which the cache holds
            nearly twice as many tokens as of bf16. `auto`: fp32 beside weights in fp32, `q8` beside weights of 4 bits,
            else bf16. A GPU has only what the model computes in.
        cache_bytes: Memory for keys and values, taken as it fills; None: an eighth of the machine's, at most.
        max_running: Most answers at a time that hold blocks of the cache. The others wait.
        policy: Who goes first: `first-come`, `priority` or `shortest` (remaining job).
        tensor_parallel: Processes that the model is spread over, on CPUs; each has an equal share of its heads. They
            are started here and end with this one, unless `torchrun` has started this one and so many others.

    Raises:
        UsageError: A precision or the device is unknown, there is no GPU, the runner for the device has no cache in
            this precision, the path is that of an adapter, the draft model has another vocabulary, the cache is too
            small for anything, or the model cannot be spread over so many processes.
        DataError: There is no such model, or it is broken.
        CapacityError: There is no room for the weights, or for the file of mapped ones.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if weights not in PLACEMENTS:
        raise UsageError(f"a place {weights!r} for weights is unknown", f"choose one of {', '.join(PLACEMENTS)}")
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is unknown", f"choose one of {', '.join(DEVICES)}")
    if cache_precision not in CACHE_PRECISIONS:
        raise UsageError(
            f"a cache in precision {cache_precision!r} is unknown", f"choose one of {', '.join(CACHE_PRECISIONS)}"
        )
    path = resolve(name_or_path)
    with uncollected():
        packed = load_packed(path, precision, device) if tensor_parallel == 1 else None
        tokenizer = packed.load_tokenizer() if packed is not None else None
        if packed is not None and tokenizer is not None:
            proposer = _proposer(speculate, tokenizer, packed.plan.config.vocab_size, device)
            runner = run_packed(packed, weights, cache_precision)
        else:
            settings = precision, weights, device, cache_precision, tensor_parallel
            tokenizer, proposer, runner = _load_stored(path, speculate, *settings)
        return LanguageModel(runner, tokenizer, path, proposer, cache_bytes, max_running, policy)


def _load_stored(
    path: Path,
    speculate: str | Path,
    precision: Precision,
    weights: Placement,
    device: Device,
    cache_precision: CachePrecision,
    tensor_parallel: int,
) -> tuple[Tokenizer, Proposer | None, Runner]:
    """As `load`, from the model's own files."""
    from tallow.engine.make_runner import make_runner  # these import torch
    from tallow.engine.process_group import start_group
    from tallow.engine.tensor_parallel import check_divisible
    from tallow.models.formats import open_model

    stored = open_model(path)
    tokenizer = stored.load_tokenizer()
    proposer = _proposer(speculate, tokenizer, stored.model.config.vocab_size, device)
    group = None
    if tensor_parallel != 1:
        check_divisible(stored.model.config, tensor_parallel)
        settings = {"name_or_path": str(path), "precision": precision, "cache_precision": cache_precision}
        group = start_group(tensor_parallel, settings)
    runner = make_runner(stored, precision, weights, device, cache_precision, group, tokenizer)
    return tokenizer, proposer, runner


def _proposer(speculate: str | Path, tokenizer: Tokenizer, vocab_size: int, device: Device) -> Proposer | None:
    """Who guesses the next tokens of a model with this tokenizer and so many logits, as `load` says."""
    if speculate == "off":
        return None
    if speculate == "ngram":
        return NgramProposer()
    from tallow.engine.make_runner import make_runner  # these import torch
    from tallow.models.formats import open_model
    from tallow.models.quantization import quantized_bits

    draft = open_model(resolve(speculate))
    if draft.load_tokenizer().backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UsageError(
            f"{speculate} has another vocabulary, so that it cannot guess this model's tokens",
            "take a smaller model of the same family, or ngram",
        )
    precision: Precision = "auto" if quantized_bits(draft.model) is not None else "q8"
    runner = make_runner(draft, precision, device=device)
    longest = context_length(runner.config)
    sequence_bytes = runner.layout.blocks_needed(longest, longest) * runner.block_bytes
    cache_bytes = min(MOST_DRAFTS * sequence_bytes, machine_bytes(runner.device) // DRAFT_CACHE_SHARE)
    return DraftModel(runner, cache_bytes, vocab_size)


def _is_conversation(prompt: Prompt) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt consists of messages.

    Raises:
        UsageError: It is no prompt, or only some of it are messages.
    """
    if isinstance(prompt, str):
        return False
    forms = "give a text, a sequence of token ids, or the messages of a conversation"
    if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Collection):
        raise UsageError(f"the prompt is {shown(prompt)}", forms)
    are_messages = {isinstance(part, Mapping) for part in prompt}
    if len(are_messages) > 1:
        raise UsageError("the prompt has messages and something else in it", forms)
    return True in are_messages
