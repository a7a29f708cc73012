"""Turns of conversations, in the spellings that there are, as messages of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tallow.data.instructions.samples import Conversation, Message
from tallow.errors import DataError

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function-response": "tool",
    "function_call": "call",
    "function-call": "call",
}
"""Who speaks in ShareGPT's turns; `call` is an assistant's message that calls tools."""


def conversation(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), learn_from: int = 0
) -> Conversation:
    """Messages of which all that an assistant wrote is learned.

    OpenAI's `weight` of a message (0 or 1) says otherwise.

    Args:
        learn_from: The first message that may be learned.

    Raises:
        DataError: Nothing would be learned.
    """
    learned = tuple(
        index >= learn_from and message["role"] == "assistant" and bool(message.get("weight", 1))
        for index, message in enumerate(messages)
    )
    if not any(learned):
        raise DataError("has no assistant message, so nothing to learn", "leave it out, or add the answer")
    kept = tuple({key: value for key, value in message.items() if key != "weight"} for message in messages)
    return Conversation(kept, learned, tuple(tools))


def read_messages(value: Any, what: str = "messages") -> list[dict[str, Any]]:
    """Messages of OpenAI's API (`role`, `content`) or turns of ShareGPT (`from`, `value`), one or a list.

    Raises:
        DataError: It is neither, or a message is broken.
    """
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{what} is no list, or an empty one", "")
    messages = [_message(turn, f"message {index}") for index, turn in enumerate(turns)]
    _number_calls(messages)
    return messages


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The functions that may be called: a list, or its JSON, of OpenAI's tools or of bare functions.

    Raises:
        DataError: It is something else.
    """
    tools = _from_json(value, "tools") if isinstance(value, str) and value.strip() else value
    if not tools:
        return []
    if not isinstance(tools, list):
        raise DataError("tools is no list", "")
    return [_tool(tool) for tool in tools]


def _number_calls(messages: Sequence[dict[str, Any]]) -> None:
    """Give ids to calls that have none, and to what they gave back, which comes in their order.

    Some templates refuse calls without one; nine letters and digits are what Mistral's want.
    """
    number, waiting = 0, list[str]()
    for message in messages:
        for call in message.get("tool_calls", ()):
            number += 1
            waiting.append(call.setdefault("id", f"call{number:05d}"))
        if message["role"] == "tool":
            if message.get("tool_call_id") in waiting:
                waiting.remove(message["tool_call_id"])
            elif waiting:
                message.setdefault("tool_call_id", waiting.pop(0))


def _tool(tool: Any) -> dict[str, Any]:
    tool = _from_json(tool, "a tool") if isinstance(tool, str) else tool
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError("a tool has no name", "")
    return {"type": "function", "function": function}


def _message(turn: Any, where: str) -> dict[str, Any]:
    if isinstance(turn, dict) and isinstance(turn.get("from"), str) and turn.get("role") is None:
        return _sharegpt_message(turn, where)
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise DataError(f"{where} has no role", "")
    message = {key: value for key, value in turn.items() if value is not None}
    if message["role"] == "function":  # OpenAI's older spelling
        message["role"] = "tool"
    if (call := message.pop("function_call", None)) is not None:
        message["tool_calls"] = [{"function": call}]
    calls = message.pop("tool_calls", None) or []
    if not isinstance(calls, list):
        raise DataError(f"tool_calls of {where} is no list", "")
    if calls:
        message["tool_calls"] = [_call(call, where) for call in calls]
    elif message.get("content") is None:
        raise DataError(f"{where} has no content", "")
    if not isinstance(message.get("content", ""), str | list):
        raise DataError(f"the content of {where} is no text", "")
    return message


def _sharegpt_message(turn: dict[str, Any], where: str) -> dict[str, Any]:
    role = ROLES.get(turn["from"].lower())
    if role is None:
        raise DataError(f"{where} is from {turn['from']}, whom nobody knows", f"known are {', '.join(ROLES)}")
    text = turn.get("value")
    if not isinstance(text, str):
        raise DataError(f"the value of {where} is no text", "")
    weight = {} if turn.get("weight") is None else {"weight": turn["weight"]}
    if role != "call":
        return {"role": role, "content": text, **weight}
    calls = _from_json(text, where)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise DataError(f"{where} calls nothing", "")
    return {"role": "assistant", "content": "", "tool_calls": [_call(call, where) for call in calls], **weight}


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call as chat templates take it: they write its arguments as JSON themselves."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"a call in {where} has no name", "")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _from_json(arguments, f"the arguments in {where}") if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise DataError(f"the arguments of a call in {where} are no JSON object", "")
    number = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**number, "type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON ({error})", "") from error
