"""What the server answers, for its OpenAPI document, which alone imports this: a server that starts need not.

The handlers build these objects as ready JSON, as validating each answer would cost more than HTTP itself; the tests
hold them to this.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema


class Told(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Error(Told):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Told):
    error: Error


class TokensDetails(Told):
    cached_tokens: int


class Usage(Told):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokensDetails | None = None


class TopLogProb(Told):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(Told):
    content: list[TokenLogProb]
    refusal: None


class CalledFunction(Told):
    name: str
    arguments: str


class ToolCall(Told):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Told):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class ChatChoice(Told):
    index: int
    message: AnswerMessage
    logprobs: ChatLogProbs | None
    finish_reason: FinishReason


class Head(Told):
    """With which the answers of OpenAI's completion APIs begin."""

    id: str
    created: int
    model: str
    system_fingerprint: None


class ChatCompletion(Head):
    object: Literal["chat.completion"]
    service_tier: None
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Told):
    name: str | None = None
    arguments: str


class ToolCallPart(Told):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(Told):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallPart] | None = None


class ChatChunkChoice(Told):
    index: int
    delta: MessageDelta
    logprobs: ChatLogProbs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Head):
    object: Literal["chat.completion.chunk"]
    service_tier: None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogProbs(Told):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Told):
    index: int
    text: str
    logprobs: CompletionLogProbs | None
    finish_reason: FinishReason


class Completion(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(CompletionChoice):
    finish_reason: FinishReason | None  # type: ignore[assignment]


class CompletionChunk(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class Model(Told):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["tallow"]
    parent: str | None
    max_model_len: int | None


class Models(Told):
    object: Literal["list"]
    data: list[Model]


class Tokens(Told):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Text(Told):
    prompt: str


ModelState = Literal["unloaded", "loading", "ready", "dead"]


class Health(Told):
    status: Literal["ready", "loading", "draining", "dead"]
    models: dict[str, ModelState]


class Version(Told):
    version: str


class EngineStatus(Told, extra="allow"):
    """What an engine is doing; once it has told, with counts of its requests, blocks and tokens."""

    state: ModelState
    restarts: int
    adapters: dict[str, str]


class ServerStatus(Told):
    status: Literal["ready", "loading", "draining", "dead"]
    requests: int
    models: dict[str, EngineStatus]


class LoadState(Told):
    state: ModelState


class Adapters(Told):
    adapters: dict[str, str]


class AnthropicError(Told):
    type: str
    message: str


class AnthropicErrorBody(Told):
    type: Literal["error"]
    error: AnthropicError


class Message(Told):
    """An answer of Anthropic's API; which blocks it consists of, Anthropic documents."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, int]


class InputTokens(Told):
    input_tokens: int


class ResponseObject(Told, extra="allow"):
    """An answer of OpenAI's responses API; what else it says, OpenAI documents."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class Event(Told, extra="allow"):
    """Of a stream of messages or responses; what else there is to each type, Anthropic and OpenAI document."""

    type: str


class Embedding(Told):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Told):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Told):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def definitions(reference: str) -> dict[str, Any]:
    """The JSON schema of each object, by its name.

    Args:
        reference: How one schema refers to another, with `{model}` for its name.
    """
    models = [each for each in globals().values() if isinstance(each, type) and issubclass(each, Told)]
    _, found = models_json_schema([(model, "serialization") for model in models], ref_template=reference)
    return found["$defs"]
