"""Conversations and answers of the APIs that have them in blocks: OpenAI's responses, Anthropic's messages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson
from pydantic_core import from_json

from tallow.serve.answers import Delta
from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits

SEPARATOR = "\n\n"
"""Between texts of one role that follow each other: many templates want roles to alternate."""


class Conversation:
    """Messages as chat templates take them.

    Args:
        param: The field that they come from.
    """

    def __init__(self, param: str) -> None:
        self._param = param
        self._messages: list[dict[str, Any]] = []
        self._called: dict[str, str] = {}

    def say(self, role: str, text: str) -> None:
        """Somebody says something."""
        self._turn(role)["content"].append(text)

    def call(self, call_id: str, name: str, arguments: str | Mapping[str, Any]) -> None:
        """The assistant calls a tool.

        Raises:
            ApiError: The arguments are no JSON object.
        """
        call = tool_call(call_id, name, arguments, self._param)
        self._turn("assistant").setdefault("tool_calls", []).append(call)
        self._called[call_id] = name

    def answer_call(self, call_id: str, text: str) -> None:
        """A tool has been called, with this result.

        Raises:
            ApiError: There was no such call.
        """
        if call_id not in self._called:
            raise ApiError(400, f"there is a result of {call_id!r}, but no call before it", param=self._param)
        message = {"role": "tool", "tool_call_id": call_id, "name": self._called[call_id], "content": [text]}
        self._messages.append(message)

    def messages(self, limits: Limits) -> Sequence[dict[str, Any]]:
        """All of them.

        Raises:
            ApiError: There are none, or too many.
        """
        if not self._messages:
            raise ApiError(400, "the conversation is empty", param=self._param)
        if len(self._messages) > limits.messages:
            raise ApiError(400, f"a conversation has at most {limits.messages} messages", param=self._param)
        return [message | {"content": SEPARATOR.join(message["content"])} for message in self._messages]

    def _turn(self, role: str) -> dict[str, Any]:
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role, "content": []})
        return self._messages[-1]


def text_of(content: str | Sequence[Any], param: str) -> str:
    """What a message says.

    Args:
        content: A text, or its parts.
        param: The field that it comes from.

    Raises:
        ApiError: A part is something else, which this server does not take (or fetch).
    """
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        match part:
            case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
                texts.append(text)
            case {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case _:
                raise unsupported_content(part.get("type") if isinstance(part, dict) else None, param)
    return "".join(texts)


def unsupported_content(kind: object, param: str) -> ApiError:
    """What is said of images, files and the like."""
    message = f"content of type {kind!r} is not taken: this model reads text only"
    return ApiError(400, message, param=param, code="unsupported_content")


def tool_call(call_id: str | None, name: str, arguments: str | Mapping[str, Any], param: str) -> dict[str, Any]:
    """A call as chat templates take it: they write its arguments as JSON themselves.

    Args:
        arguments: An object, or its JSON; an empty text is an empty object.
        param: The field that it comes from.

    Raises:
        ApiError: The arguments are no JSON object.
    """
    try:
        source = arguments if isinstance(arguments, str) else orjson.dumps(arguments)
        value = from_json(source or "{}", allow_inf_nan=False)
    except (ValueError, orjson.JSONEncodeError) as error:
        raise ApiError(400, f"the arguments of a call of {name!r} are not JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the arguments of a call of {name!r} are no JSON object", param=param)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}


@dataclass
class Block:
    """A part of an answer: text, or the call of a tool.

    Args:
        call_id, name: Of the call; None: it is text.
        text: The text, or the call's arguments as JSON.
    """

    call_id: str | None = None
    name: str | None = None
    text: str = ""

    def __post_init__(self) -> None:
        self.id = f"{'msg' if self.name is None else 'fc'}_{uuid.uuid4().hex}"


class Step(NamedTuple):
    """A block begins, grows by a piece of text, or ends; one ends before the next begins."""

    kind: Literal["begin", "grow", "end"]
    position: int
    block: Block
    piece: str = ""


class Blocks:
    """The one answer to a question, in blocks: at least one, in the end."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def grow(self, delta: Delta) -> list[Step]:
        """What a delta changes."""
        steps: list[Step] = []
        if delta.text:
            if not self.blocks or self.blocks[-1].name is not None:
                steps += self._begin(Block())
            steps.append(self._grow(delta.text))
        for call in delta.calls:
            if call.name is not None:
                steps += self._begin(Block(call.id, call.name))
            steps.append(self._grow(call.arguments))
        if delta.finish_reason is not None:
            if not self.blocks:
                steps += self._begin(Block())
            steps += self._end()
        return steps

    def _begin(self, block: Block) -> list[Step]:
        ended = self._end()
        self.blocks.append(block)
        return [*ended, Step("begin", len(self.blocks) - 1, block)]

    def _grow(self, piece: str) -> Step:
        self.blocks[-1].text += piece
        return Step("grow", len(self.blocks) - 1, self.blocks[-1], piece)

    def _end(self) -> list[Step]:
        return [Step("end", len(self.blocks) - 1, self.blocks[-1])] if self.blocks else []
