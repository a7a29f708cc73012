"""Anthropic's messages: questions from their blocks, answers as blocks and as named events."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field
from pydantic_core import from_json

from tallow.serve.answers import Answers, Delta, Question
from tallow.serve.blocks import Block, Blocks, Conversation, Step, text_of, unsupported_content
from tallow.serve.document import ANTHROPIC_ERRORS, answers
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream, Json, respond, salt_of, sse
from tallow.serve.requests import Body, Few, FewParts, NumTokens, Sampling, ToolName, tool_fields
from tallow.serve.service import Service
from tallow.serve.settings import Limits

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Few[dict[str, Any]]


class CustomTool(Body):
    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(alias="input_schema")


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool = False


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: JsonFormat | None = None


class CountTokensRequest(Sampling):
    """A conversation whose tokens are counted."""

    messages: Annotated[Few[Message], FewParts]
    system: str | Few[dict[str, Any]] = ""
    tools: Few[CustomTool] = Field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()
    thinking: dict[str, Any] = Field(default_factory=dict)
    output_config: OutputConfig = OutputConfig()
    stop: str | Few[str] | None = Field(default=None, alias="stop_sequences")

    def structures(self) -> dict[str, Any]:
        form = self.output_config.format
        return super().structures() | {"output_config.format": {"json_schema": form.schema_} if form else None}


class MessagesRequest(CountTokensRequest):
    """A conversation to be answered."""

    max_tokens: NumTokens


class MessageAnswer:
    """One message; the arguments are those of `Chat`."""

    def __init__(self, service: Service, request: MessagesRequest, salt: str | None) -> None:
        self._service, self._most_tokens = service, request.max_tokens
        self._blocks = Blocks()
        self._message: dict[str, Any] = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
        self.question = question(request, service.settings.limits, request.max_tokens, salt)

    async def whole(self) -> dict[str, Any]:
        """The message at once."""
        async for _ in self.events():
            pass
        return self._message | {"content": [content_of(block) for block in self._blocks.blocks]}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The message piece by piece."""
        async with self._service.answer(self.question) as answers:
            async for delta in answers.deltas():
                if "model" not in self._message:
                    self._message |= {"model": answers.name, "content": [], "stop_reason": None, "stop_sequence": None}
                    self._message["usage"] = _usage(answers) | {"output_tokens": 0}
                    yield _event("message_start", message=self._message)
                for step in self._blocks.grow(delta):
                    yield _tell(step)
                if delta.finish_reason is not None:
                    end = self._stop(delta, answers)
                    self._message |= end | {"usage": _usage(answers)}
                    yield _event("message_delta", delta=end, usage=_usage(answers))
        yield _event("message_stop")

    def _stop(self, delta: Delta, answers: Answers) -> dict[str, Any]:
        reason, by = STOP_REASONS.get(delta.finish_reason or ""), None
        if delta.finish_reason == "stop" and delta.piece.stopped_by is not None:
            reason, by = "stop_sequence", delta.piece.stopped_by
        elif delta.finish_reason == "length" and answers.num_tokens < self._most_tokens:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": by}


def add_routes(app: FastAPI, service: Service) -> None:
    """Let an app answer this API."""

    @app.post("/v1/messages", responses=answers("Message", "Event") | ANTHROPIC_ERRORS)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = MessageAnswer(service, body, salt_of(request))
        if body.stream:
            return EventStream(asked.events(), tell_error)
        return await respond(request, asked.whole())

    @app.post("/v1/messages/count_tokens", responses=answers("InputTokens") | ANTHROPIC_ERRORS)
    async def count_tokens(body: CountTokensRequest) -> Response:
        """How many tokens a conversation has."""
        asked = question(body, service.settings.limits)
        async with service.admission.place(asked.num_bytes, asked.timeout_s):
            facts = await service.engine(asked.model).ready()
            return Json({"input_tokens": len(await asked.encode(facts))})


def tell_error(error: ApiError) -> bytes:
    """An error within the events, which it ends."""
    return sse(error.as_anthropic(), "error")


def question(
    request: CountTokensRequest, limits: Limits, most_tokens: int | None = None, salt: str | None = None
) -> Question:
    """What a request asks.

    Raises:
        ApiError: Something that there is not.
    """
    if request.thinking.get("type") == "enabled":  # the other types leave it to the model
        raise ApiError(400, "there is no thinking apart from the answer: leave thinking out", param="thinking")
    if request.messages and request.messages[-1].role == "assistant":
        raise ApiError(400, "an answer cannot be begun here: the last message must be the user's", param="messages")
    if len(request.messages) > limits.messages:
        raise ApiError(400, f"a conversation has at most {limits.messages} messages", param="messages")
    choice = request.tool_choice
    named = {"any": "required", "tool": f":{choice.name}"}.get(choice.type, choice.type)
    return Question(
        params=request.params(most_tokens, limits),
        messages=_conversation(request).messages(limits),
        **tool_fields(request.tools, named, not choice.disable_parallel_tool_use, limits),
        **request.common_fields(salt),
    )


def _conversation(request: CountTokensRequest) -> Conversation:
    conversation = Conversation("messages")
    for block in _blocks(request.system):
        if text := text_of([block], "system"):
            conversation.say("system", text)
    for index, message in enumerate(request.messages):
        place = f"messages.{index}.content"
        for block in _blocks(message.content):
            match message.role, block:
                case role, {"type": "text", "text": str(text)}:
                    conversation.say(role, text)
                case "assistant", {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(values)}:
                    conversation.call(call_id, name, values)
                case "user", {"type": "tool_result", "tool_use_id": str(call_id)}:
                    result = text_of(_blocks(block.get("content") or ""), place)
                    conversation.answer_call(call_id, f"Error: {result}" if block.get("is_error") else result)
                case "assistant", {"type": "thinking" | "redacted_thinking"}:
                    pass
                case _:
                    raise unsupported_content(block.get("type"), place)
    return conversation


def _blocks(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _tell(step: Step) -> bytes:
    is_text = step.block.name is None
    if step.kind == "begin":
        empty = Block(step.block.call_id, step.block.name, "" if is_text else "{}")
        return _event("content_block_start", index=step.position, content_block=content_of(empty))
    if step.kind == "end":
        return _event("content_block_stop", index=step.position)
    delta = {"type": "text_delta", "text": step.piece}
    if not is_text:
        delta = {"type": "input_json_delta", "partial_json": step.piece}
    return _event("content_block_delta", index=step.position, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind} | fields, kind)


def content_of(block: Block) -> dict[str, Any]:
    """A block as a message has it."""
    if block.name is None:
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block.text)}


def _input(arguments: str) -> orjson.Fragment:
    """The arguments of a call; of ones that end too early as much as can be read, as clients do with a stream."""
    try:
        value = json.dumps(from_json(arguments, allow_partial=True, allow_inf_nan=False))
    except ValueError:
        value = json.dumps({"INVALID_JSON": arguments})
    return orjson.Fragment(value)


def _usage(answers: Answers) -> dict[str, int]:
    return {
        "input_tokens": answers.num_prompt_tokens - answers.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answers.cached_tokens,
        "output_tokens": answers.num_tokens,
    }
