"""What most users hold: a model with its tokenizer that continues texts, answers messages and scores tokens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tallow.engine.engine import SCORING, Engine
from tallow.engine.make_runner import PLACEMENTS, PRECISIONS, Placement, Precision, make_runner
from tallow.engine.request import FinishReason, Request, RequestState, SamplingParams
from tallow.engine.runner import Runner
from tallow.errors import DataError, UsageError
from tallow.models.config import DecoderConfig
from tallow.models.formats import open_model
from tallow.models.store import resolve
from tallow.startup import uncollected
from tallow.tokenizer.chat import Message, encode_chat_prompt
from tallow.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams()
SCORED_TOGETHER = 64
"""Sequences of a batch that the engine is given ahead: enough to fill its steps where they are short."""

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Special tokens with which chat templates end a turn, and which not every config.json names as an end token."""


@dataclass(frozen=True)
class Generation:
    """A prompt and its answer.

    Args:
        prompt_ids: The tokens of the prompt.
        ids: The tokens of the answer; one that ended it is the last of them.
        text: The text of the answer, without end tokens, cut before a stop string.
        finish_reason: `stop` (an end token, a stop string, a complete structure), `length` (the limit or the context is
            reached), `abort`.
        log_probs: Log-probability of each token of the answer under the model, before temperature and filters.
        prefill_s: Seconds from submission to the first token.
        decode_s: Seconds from the first token to the last.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: FinishReason
    log_probs: list[float]
    prefill_s: float
    decode_s: float


class Stream(Iterator[str]):
    """The text of one answer, piece by piece; all pieces together are the `text` of its generation.

    A stream that is left before its end frees the engine when it is closed or forgotten.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request, self._shown = engine, request, 0

    def __next__(self) -> str:
        request = self._request
        while len(request.text) == self._shown:
            if request.state is RequestState.FINISHED:
                if request.error is not None:
                    raise request.error
                raise StopIteration
            self._engine.step()
        piece = request.text[self._shown :]
        self._shown += len(piece)
        return piece

    def close(self) -> None:
        """End the answer here."""
        self._engine.abort(self._request)

    def __del__(self) -> None:
        self.close()

    def result(self) -> Generation:
        """The whole answer; what is still to come of it is generated first."""
        for _ in self:
            pass
        return _generation(self._request)


class LanguageModel:
    """A model, its tokenizer, and an engine that runs them; not for use from several threads at the same time.

    Args:
        runner: The model, ready to compute.
        tokenizer: Its tokenizer.
        path: Where both came from.

    Raises:
        DataError: The tokenizer has tokens that the model does not know.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, path: Path) -> None:
        vocab_size = runner.config.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise DataError(
                f"the tokenizer of {path} has {tokenizer.vocab_size} tokens, its model only {vocab_size}",
                "the tokenizer belongs to another model",
            )
        self.tokenizer = tokenizer
        self.path = path
        self.engine = Engine(runner, tokenizer)

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

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Generation:
        """Continue a text (with what the tokenizer puts before every text, such as a BOS token) or token ids.

        Args:
            prompt: The text or the tokens.
            params: How, and how far.
            adapter: The name of a loaded adapter to do it with.

        Raises:
            UsageError: The prompt is empty, not of this vocabulary, or leaves no room for an answer; or there is no
                such adapter.
        """
        return self.generate_batch([prompt], params, adapter=adapter)[0]

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams = GREEDY,
        *,
        adapter: str | None = None,
    ) -> list[Generation]:
        """Continue many prompts at once; the same results as one by one, sooner.

        Raises:
            UsageError: As `generate`, for any of the prompts.
        """
        requests: list[Request] = []
        try:
            for prompt in prompts:
                requests.append(self.engine.submit(self.encode_prompt(prompt), params, adapter=adapter))
            while any(request.state is not RequestState.FINISHED for request in requests):
                self.engine.step()
        finally:
            for request in requests:
                self.engine.abort(request)
        return [_generation(request) for request in requests]

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Stream:
        """As `generate`, piece by piece."""
        return Stream(self.engine, self.engine.submit(self.encode_prompt(prompt), params, adapter=adapter))

    def chat(
        self, messages: Sequence[Message], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Generation:
        """Answer a conversation: messages with a `role` (system, user, assistant) and `content`.

        Raises:
            DataError: The model has no chat template, or it refuses the conversation.
            UsageError: The conversation leaves no room for an answer, or there is no such adapter.
        """
        return self.stream_chat(messages, params, adapter=adapter).result()

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams = GREEDY, *, adapter: str | None = None
    ) -> Stream:
        """As `chat`, piece by piece."""
        if not params.ignore_eos:
            params = replace(params, stop_ids=(*params.stop_ids, *self._turn_ends()))
        return Stream(self.engine, self.engine.submit(self.encode_chat(messages), params, adapter=adapter))

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Log-probability of each token but the first, given all before it: T - 1 values, fp32.

        Raises:
            UsageError: There are no ids, or they are not of this vocabulary, or longer than the context.
        """
        return self.engine.log_probs(ids)

    def log_probs_batch(self, sequences: Iterable[Sequence[int]]) -> Generator[Tensor, None, None]:
        """As `log_probs`, of any number of sequences: in their order, some of them computed together.

        Raises:
            UsageError: As `log_probs`, when it is the sequence's turn.
        """
        left, requests = iter(sequences), deque[Request]()
        try:
            while True:
                ahead = itertools.islice(left, SCORED_TOGETHER - len(requests))
                requests.extend(self.engine.submit(ids, SCORING) for ids in ahead)
                if not requests:
                    return
                while requests[0].state is not RequestState.FINISHED:
                    self.engine.step()
                yield torch.tensor(requests.popleft().prompt_log_probs)
        finally:
            for request in requests:
                self.engine.abort(request)

    def encode_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a prompt."""
        return self.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins; only the template writes control tokens.

        Raises:
            DataError: The model has no chat template, or it refuses the conversation.
        """
        return encode_chat_prompt(self.tokenizer, messages)

    def _turn_ends(self) -> list[int]:
        """The special tokens with which the chat template ends a turn."""
        template = self.tokenizer.chat_template
        written = [token for token in TURN_ENDS if template is not None and token in template.source]
        encoded = [self.tokenizer.encode(token, parse_special=True) for token in written]
        return [ids[0] for ids in encoded if len(ids) == 1 and ids[0] in self.tokenizer.special_ids]


def load(name_or_path: str | Path, precision: Precision = "auto", weights: Placement = "auto") -> LanguageModel:
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

    Raises:
        UsageError: The precision is unknown, or the path is that of an adapter.
        DataError: There is no such model, or it is broken.
        CapacityError: There is no room for the weights, or for the file of mapped ones.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if weights not in PLACEMENTS:
        raise UsageError(f"a place {weights!r} for weights is unknown", f"choose one of {', '.join(PLACEMENTS)}")
    path = resolve(name_or_path)
    with uncollected():
        stored = open_model(path)
        return LanguageModel(make_runner(stored, precision, weights), stored.load_tokenizer(), path)


def _generation(request: Request) -> Generation:
    if request.error is not None:
        raise request.error
    assert request.finish_reason is not None
    assert request.finished_s is not None
    first_token_s = request.first_token_s if request.first_token_s is not None else request.finished_s
    return Generation(
        prompt_ids=list(request.prompt_ids),
        ids=request.ids,
        text=request.text,
        finish_reason=request.finish_reason,
        log_probs=request.log_probs,
        prefill_s=first_token_s - request.submitted_s,
        decode_s=request.finished_s - first_token_s,
    )
