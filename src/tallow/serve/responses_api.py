"""OpenAI's responses: questions from their items, answers as items and as named events.

Nothing is stored, so each request brings its whole conversation. There is no reasoning apart from the answer: settings
of it are let be, and responses say that there was none.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from tallow.serve.answers import Answers, Question
from tallow.serve.blocks import Block, Blocks, Conversation, Step, text_of
from tallow.serve.document import answers
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream, respond, salt_of, sse
from tallow.serve.requests import Body, Few, FewParts, NumTokens, Sampling, ToolName, tool_fields
from tallow.serve.service import Service
from tallow.serve.settings import Limits

NOT_THERE = {
    "previous_response_id": "responses are not stored; send the whole conversation as input",
    "conversation": "conversations are not stored; send the whole one as input",
    "prompt": "prompts are not stored; send its text as instructions",
    "background": "responses are not stored; stream this one, or wait for it",
    "top_logprobs": "log-probabilities are told by /v1/chat/completions",
}
HELD_TO = {"store": False, "truncation": "disabled", "reasoning": {"effort": None, "summary": None}}
ECHOED = {
    *("instructions", "max_output_tokens", "metadata", "temperature", "top_p"),
    *("tools", "tool_choice", "previous_response_id", "background"),
}


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextFormat = TextFormat()


class FunctionTool(Body):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Body):
    type: Literal["function"]
    name: str


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Few[NamedTool]


class ResponsesRequest(Sampling):
    """A conversation to be answered."""

    input: Annotated[str | Few[dict[str, Any]], FewParts]
    instructions: str | None = None
    max_output_tokens: NumTokens | None = None
    text: TextConfig = TextConfig()
    tools: Few[FunctionTool] = Field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] | NamedTool | AllowedTools = "auto"
    parallel_tool_calls: bool | None = True
    metadata: Annotated[dict[str, str], Field(fail_fast=True)] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = False
    top_logprobs: int | None = None

    def structures(self) -> dict[str, Any]:
        kind, schema = self.text.format.type, self.text.format.schema_
        if kind == "json_schema" and schema is None:
            raise ApiError(400, "text.format has no schema", param="text.format")
        structure = {"text": None, "json_object": {"json_object": True}, "json_schema": {"json_schema": schema}}[kind]
        return super().structures() | {"text.format": structure}


class ResponseAnswer:
    """One response; the arguments are those of `Chat`."""

    def __init__(self, service: Service, request: ResponsesRequest, salt: str | None) -> None:
        self.id, self.created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._service, self._request = service, request
        self._name, self._usage = "", None
        self._status, self._error = "in_progress", None
        self._blocks = Blocks()
        self._num_events = 0
        self.question = question(request, service.settings.limits, salt)

    async def whole(self) -> dict[str, Any]:
        """The response at once."""
        async for _ in self.events():
            pass
        return self._response()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response piece by piece."""
        async with self._service.answer(self.question) as answers:
            self._name = answers.name
            async for delta in answers.deltas():
                if self._num_events == 0:
                    for kind in ("created", "in_progress"):
                        yield self._event(f"response.{kind}", response=self._response())
                steps = self._blocks.grow(delta)
                if delta.finish_reason is not None:
                    self._status = "incomplete" if delta.finish_reason == "length" else "completed"
                    self._usage = _usage(answers)
                for step in steps:
                    for event in self._tell(step):
                        yield event
        yield self._event(f"response.{self._status}", response=self._response())

    def tell_error(self, error: ApiError) -> bytes:
        """An error within the events, which it ends."""
        self._status, self._error = "failed", {"code": "server_error", "message": error.message}
        return self._event("response.failed", response=self._response())

    def _tell(self, step: Step) -> Iterator[bytes]:
        item, is_text = self._item(step.position, step.block, begins=step.kind == "begin"), step.block.name is None
        place = {"item_id": item["id"], "output_index": step.position} | ({"content_index": 0} if is_text else {})
        kind = "response.output_text" if is_text else "response.function_call_arguments"
        scores = {"logprobs": []} if is_text else {}
        if step.kind == "grow":
            yield self._event(f"{kind}.delta", **place, delta=step.piece, **scores)
        elif step.kind == "begin":
            yield self._event("response.output_item.added", output_index=step.position, item=item)
            if is_text:
                yield self._event("response.content_part.added", **place, part=_part(""))
        else:
            told = {"text": step.block.text} if is_text else {"name": step.block.name, "arguments": step.block.text}
            yield self._event(f"{kind}.done", **place, **told, **scores)
            if is_text:
                yield self._event("response.content_part.done", **place, part=_part(step.block.text))
            yield self._event("response.output_item.done", output_index=step.position, item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._num_events += 1
        return sse({"type": kind, "sequence_number": self._num_events - 1} | fields, kind)

    def _response(self) -> dict[str, Any]:
        request, is_over = self._request, self._status != "in_progress"
        blocks = self._blocks.blocks if is_over else []
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "model": self._name,
            "output": [self._item(index, block) for index, block in enumerate(blocks)],
            "usage": self._usage,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "text": {"format": request.text.format.model_dump(by_alias=True, exclude_none=True)},
            **request.model_dump(include=ECHOED),
            **HELD_TO,
        }

    def _item(self, index: int, block: Block, *, begins: bool = False) -> dict[str, Any]:
        is_cut = self._status in ("incomplete", "failed") and index == len(self._blocks.blocks) - 1
        item = {"id": block.id, "status": "in_progress" if begins else "incomplete" if is_cut else "completed"}
        if block.name is None:
            return item | {"type": "message", "role": "assistant", "content": [] if begins else [_part(block.text)]}
        call = {"call_id": block.call_id, "name": block.name, "arguments": "" if begins else block.text}
        return item | {"type": "function_call"} | call


def add_routes(app: FastAPI, service: Service) -> None:
    """Let an app answer this API."""

    @app.post("/v1/responses", responses=answers("ResponseObject", "Event"))
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = ResponseAnswer(service, body, salt_of(request))
        if body.stream:
            return EventStream(asked.events(), asked.tell_error)
        return await respond(request, asked.whole())


def question(request: ResponsesRequest, limits: Limits, salt: str | None = None) -> Question:
    """What a request asks.

    Raises:
        ApiError: Something that there is not.
    """
    for name, why in NOT_THERE.items():
        if getattr(request, name):
            raise ApiError(400, f"there is no {name} here: {why}", param=name, code="unsupported_parameter")
    tools, choice = request.tools, request.tool_choice
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        tools, choice = [tool for tool in tools if tool.name in allowed], choice.mode
    elif isinstance(choice, NamedTool):
        choice = f":{choice.name}"
    return Question(
        params=request.params(request.max_output_tokens, limits),
        messages=_conversation(request).messages(limits),
        **tool_fields(tools, choice, request.parallel_tool_calls, limits),
        **request.common_fields(salt),
    )


def _conversation(request: ResponsesRequest) -> Conversation:
    conversation = Conversation("input")
    if request.instructions:
        conversation.say("system", request.instructions)
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    for index, item in enumerate(items):
        param = f"input[{index}]"
        match item:
            case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
                conversation.call(call_id, name, arguments)
            case {"type": "function_call_output", "call_id": str(call_id), "output": str() | list() as output}:
                conversation.answer_call(call_id, text_of(output, f"{param}.output"))
            case {"type": "reasoning"}:
                pass
            case {"role": "user" | "assistant" | "system" | "developer" as role, "content": str() | list() as content}:
                conversation.say("system" if role == "developer" else role, text_of(content, f"{param}.content"))
            case _:
                message = f"an item of type {item.get('type')!r} is not taken, or not in this form"
                raise ApiError(400, message, param=param, code="unsupported_content")
    return conversation


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answers: Answers) -> dict[str, Any]:
    return {
        "input_tokens": answers.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": answers.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answers.num_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answers.num_prompt_tokens + answers.num_tokens,
    }
