"""What the server answers, as its OpenAPI document tells it.

The handlers build these objects as ready JSON, as validating each answer would cost more than HTTP itself; the tests
hold them to this.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from tallow.serve.http import ADMIN_PATHS, OPEN_PATHS, Keys

REFERENCE = "#/components/schemas/{model}"


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


class EngineStatus(BaseModel):
    """What an engine is doing; once it has told, with counts of its requests, blocks and tokens."""

    model_config = ConfigDict(extra="allow")
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


Answers = dict[int | str, dict[str, Any]]
ERRORS: Answers = {
    "4XX": {
        "model": ErrorBody,
        "description": "The request is wrong (400), has no key (401), asks for what there is not (404, 405), is too "
        "slow (408) or too large (413), or comes while too many others wait (429, with Retry-After)",
    },
    "5XX": {"model": ErrorBody, "description": "The engine failed (500), or cannot answer now (503, with Retry-After)"},
}
SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "key-header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "admin-key": {"type": "http", "scheme": "bearer"},
}
METRICS: Answers = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
ANTHROPIC_ERRORS: Answers = {status: answer | {"model": AnthropicErrorBody} for status, answer in ERRORS.items()}
STREAMED: list[type[BaseModel]] = [ChatCompletionChunk, CompletionChunk]


def answers(model: type[BaseModel], chunk: type[BaseModel] | None = None) -> Answers:
    """What FastAPI is told of a route's answers.

    Args:
        model: Of a whole answer.
        chunk: Of an event's data, where the answer may be streamed; one of `STREAMED`.
    """
    if chunk is None:
        return {200: {"model": model}}
    chunk_schema = {"$ref": REFERENCE.format(model=chunk.__name__)}
    told = {"contentMediaType": "application/json", "contentSchema": chunk_schema}
    data = {"type": "string", "anyOf": [told, {"const": "[DONE]", "description": "The last one"}]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"model": model, "content": {"text/event-stream": {"itemSchema": event}}}}


def describe(app: FastAPI, keys: Keys) -> None:
    """Complete an app's OpenAPI document: what streams consist of, and which keys open what.

    Args:
        app: What it describes.
        keys: Those that are asked for.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(make(), keys)
        return make()

    app.openapi = openapi


def _complete(document: dict[str, Any], keys: Keys) -> None:
    components, paths = document["components"], document["paths"]
    _, chunks = models_json_schema([(chunk, "serialization") for chunk in STREAMED], ref_template=REFERENCE)
    components["schemas"] |= chunks["$defs"]
    components["securitySchemes"] = SECURITY_SCHEMES
    if not keys.open_admin:
        for path in [path for path in paths if path.startswith(ADMIN_PATHS)]:
            del paths[path]
    for path, operations in paths.items():
        for operation in operations.values():
            if path.startswith(ADMIN_PATHS):
                operation["security"] = [{"admin-key": []}]
            elif keys.are_wanted and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}, {"key-header": []}]
