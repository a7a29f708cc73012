"""Anthropic's messages: its own client against a server that runs, and what a tiny model cannot show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import orjson
import pytest
from pydantic import BaseModel
from tests.serve.conftest import KEY, Served
from tests.serve.scripted import ScriptedService, events_of, says, sent

from tallow.serve.anthropic_api import (
    CountTokensRequest,
    MessageAnswer,
    MessagesRequest,
    content_of,
    question,
    tell_error,
)
from tallow.serve.blocks import Block, Blocks
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream
from tallow.serve.settings import Limits
from tallow.serve.tools import ToolCallDelta

MESSAGES: list[Any] = [{"role": "user", "content": "Say something."}]
TOOL: dict[str, Any] = {
    "name": "paint",
    "description": "Paints.",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
REPEATABLE = {"temperature": 1, "seed": 3}
LETTERS = REPEATABLE | {"structured_outputs": {"regex": "[a-z]{40}"}}
ASKED: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "extra_body": REPEATABLE}


class Choice(BaseModel):
    answer: bool


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def asked(messages: list[Any], **fields: Any) -> Any:
    return question(MessagesRequest.model_validate({"messages": messages, "max_tokens": 5} | fields), Limits(), 5)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def error_of(refused: anthropic.APIStatusError) -> Any:
    assert isinstance(refused.body, dict)
    return refused.body["error"]


def test_a_conversation_is_answered(client: Any) -> None:
    request = ASKED | {"system": "Be brief.", "extra_body": LETTERS}
    message = client.messages.create(**request)
    assert message.type == "message"
    assert message.stop_reason == "max_tokens"
    assert message.stop_sequence is None
    assert len(text_of(message)) == 20
    assert message.usage.output_tokens == 20
    again = client.messages.create(**request)
    assert text_of(again) == text_of(message)
    assert again.usage.cache_read_input_tokens
    counted = client.messages.count_tokens(model="tiny", messages=MESSAGES, system="Be brief.")
    for usage in (message.usage, again.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


def test_the_events_are_the_message_in_pieces(client: Any) -> None:
    request = ASKED | {"extra_body": LETTERS}
    whole = client.messages.create(**request)
    events = list(client.messages.create(**request, stream=True))
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == text_of(whole)
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    with client.messages.stream(**request) as stream:
        message = stream.get_final_message()
    told = message.to_dict() | {"id": whole.id, "usage": whole.usage.to_dict()}
    assert {key: told[key] for key in whole.to_dict()} == whole.to_dict()
    assert message.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client: Any) -> None:
    request = ASKED | {"extra_body": LETTERS}
    text = text_of(client.messages.create(**request))
    stop = text[10:12]
    request |= {"stop_sequences": ["never-written", stop]}
    message = client.messages.create(**request)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == text[: text.index(stop)]
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", stop)
    assert text_of(streamed) == text_of(message)


def test_a_full_context_is_told_from_a_reached_limit(client: Any, served: Served) -> None:
    with served.client() as plain:
        context_length = plain.get("/v1/models/tiny").json()["max_model_len"]
    request = ASKED | {"max_tokens": context_length, "extra_body": REPEATABLE | {"ignore_eos": True}}
    message = client.messages.create(**request)
    assert message.stop_reason == "model_context_window_exceeded"
    assert (
        message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) + message.usage.output_tokens
        == context_length
    )


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}])
def test_a_tool_is_called_and_its_result_sent_back(client: Any, choice: Any) -> None:
    choice = choice | {"disable_parallel_tool_use": True}
    request = ASKED | {"tools": [TOOL], "tool_choice": choice, "max_tokens": 200}
    message = client.messages.create(**request)
    [call] = message.content
    assert call.type == "tool_use"
    assert call.name == "paint"
    assert call.input["colour"] in ("red", "blue")
    assert message.stop_reason == "tool_use"

    with client.messages.stream(**request) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message()
    assert json.loads("".join(pieces)) == call.input
    assert streamed.content[0].input == call.input
    assert streamed.stop_reason == "tool_use"

    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}]}
    history = [*MESSAGES, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    before, after = (
        client.messages.count_tokens(model="tiny", messages=messages, tools=[TOOL]).input_tokens
        for messages in (MESSAGES, history)
    )
    assert after > before + len('{"name": "paint", "arguments": {"colour": "red"}}')
    assert client.messages.create(**ASKED | {"messages": history, "tools": [TOOL]}).usage.output_tokens


def test_a_call_that_is_cut_is_the_same_in_a_stream(client: Any) -> None:
    request = ASKED | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "paint"}, "max_tokens": 8}
    message = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert message.stop_reason == streamed.stop_reason == "max_tokens"
    assert streamed.content[0].input == message.content[0].input


def test_a_schema_is_kept(client: Any) -> None:
    message = client.messages.parse(**ASKED | {"max_tokens": 100}, output_format=Choice)
    assert message.stop_reason == "end_turn"
    assert isinstance(message.parsed_output, Choice)


def test_what_there_is_not_is_refused_clearly(client: Any) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/never-fetched.png"}}
    with pytest.raises(anthropic.BadRequestError, match="reads text only") as refused:
        client.messages.create(**ASKED | {"messages": [{"role": "user", "content": [image]}]})
    assert error_of(refused.value)["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="no thinking apart"):
        client.messages.create(**ASKED, thinking={"type": "enabled", "budget_tokens": 1024})
    with pytest.raises(anthropic.BadRequestError, match="cannot be begun"):
        client.messages.create(**ASKED | {"messages": [*MESSAGES, {"role": "assistant", "content": "I"}]}, stream=True)
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.type"):
        client.messages.create(**ASKED, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**ASKED | {"max_tokens": 0})
    with pytest.raises(anthropic.NotFoundError, match="no model 'other'"):
        client.messages.create(**ASKED | {"model": "other"}, stream=True)
    long = ASKED | {"messages": [{"role": "user", "content": "a" * 5000}]}
    with pytest.raises(anthropic.BadRequestError, match="context is of"):
        client.messages.create(**long, stream=True)


def test_a_key_is_wanted(serve: Any, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alpha:{KEY}\n")
    url = serve("--keys-file", str(keys)).url
    wrong: Any = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="needs an API key") as refused:
        wrong.messages.create(**ASKED)
    assert error_of(refused.value)["type"] == "authentication_error"
    right: Any = anthropic.Anthropic(base_url=url, api_key=KEY)
    assert right.messages.create(**ASKED).content


def test_blocks_become_turns() -> None:
    call = {"type": "tool_use", "name": "f", "input": {"n": 1}}
    result = {"type": "tool_result", "tool_use_id": "2", "is_error": True, "content": [{"type": "text", "text": "y"}]}
    messages = [
        {"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "I look."},
            call | {"id": "1"}, call | {"id": "2"}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "x"}, result, {"type": "text", "text": "d"}]},
    ]  # fmt: skip
    function = {"name": "f", "arguments": {"n": 1}}
    assert list(asked(messages, system=[{"type": "text", "text": "Be brief."}]).messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\n\nb\n\nc"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in ("1", "2")],
        },
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "x"},
        {"role": "tool", "tool_call_id": "2", "name": "f", "content": "Error: y"},
        {"role": "user", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "the conversation is empty"),
        ([{"type": "text"}], "not taken"),
        ([{"type": "tool_use", "id": "1", "name": "f", "input": {}}], "'tool_use' is not taken"),
        ([{"type": "tool_result", "tool_use_id": "1"}], "no call before it"),
        ([{"type": "tool_result", "tool_use_id": "1", "content": 5}], "not taken"),
        ([{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}], "'image' is not taken"),
        ([{"type": "document"}], "reads text only"),
    ],
)
def test_malformed_blocks_are_refused(content: list[Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        asked([{"role": "user", "content": content}])
    assert refused.value.status == 400


def test_an_input_that_cannot_be_read_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    for values in (deep, {"n": 10**30}):
        call = {"type": "tool_use", "id": "1", "name": "f", "input": values}
        with pytest.raises(ApiError, match="are not JSON"):
            asked([{"role": "assistant", "content": [call]}, *MESSAGES])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "paint"}, ":paint"),
    ],
)
def test_tools_and_choices(choice: dict[str, Any], expected: str) -> None:
    found = asked(MESSAGES, tools=[TOOL | {"type": "custom"}], tool_choice=choice, stop_sequences=["x"])
    assert found.tool_choice == expected
    assert found.tools == [{"name": "paint", "description": "Paints.", "parameters": TOOL["input_schema"]}]
    assert found.params["stop"] == ["x"]
    assert found.most_calls > 1
    assert asked(MESSAGES, tool_choice=choice | {"disable_parallel_tool_use": True}, tools=[TOOL]).most_calls == 1
    for wrong in ({"type": "any"}, {"type": "tool", "name": "f"}, {"type": "tool"}):
        with pytest.raises(ApiError, match="tool"):
            asked(MESSAGES, tool_choice=wrong)


def test_counting_needs_no_max_tokens() -> None:
    assert "max_new_tokens" not in question(CountTokensRequest.model_validate({"messages": MESSAGES}), Limits()).params


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ('{"a": 1, "b": "cut', {"a": 1}),
        ("{", {}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        ("{a}", {"INVALID_JSON": "{a}"}),
        ('{"a": NaN}', {"INVALID_JSON": '{"a": NaN}'}),
        ('{"a":' * 999, {"INVALID_JSON": '{"a":' * 999}),
    ],
)
def test_the_input_of_a_call_is_always_an_object(arguments: str, expected: dict[str, Any]) -> None:
    content = content_of(Block("1", "f", arguments))
    assert json.loads(orjson.dumps(content)) == {"type": "tool_use", "id": "1", "name": "f", "input": expected}


def test_an_answer_falls_into_blocks() -> None:
    deltas = [
        says("I "),
        says("look.", ToolCallDelta(0, "1", "f", '{"a"'), ToolCallDelta(0, None, None, ": 1}")),
        says("", ToolCallDelta(1, "2", "g", "{}")),
        says("Done.", end="tool_calls"),
    ]
    blocks = Blocks()
    steps = [step for delta in deltas for step in blocks.grow(delta)]
    expected = [(None, "I look."), ("f", '{"a": 1}'), ("g", "{}"), (None, "Done.")]
    assert [(block.name, block.text) for block in blocks.blocks] == expected
    for position, block in enumerate(blocks.blocks):
        own = [step for step in steps if step.position == position]
        assert [own[0].kind, own[-1].kind] == ["begin", "end"]
        assert "".join(step.piece for step in own) == block.text
    assert [step.position for step in steps] == sorted(step.position for step in steps)


def test_an_empty_answer_has_an_empty_text() -> None:
    steps = Blocks().grow(says("", end="stop"))
    assert [(step.kind, step.block.text) for step in steps] == [("begin", ""), ("end", "")]


def test_text_and_calls_are_told_in_order() -> None:
    deltas = [says("I look."), says("", ToolCallDelta(0, "1", "f", '{"a": 1}')), says("", end="tool_calls")]
    request = MessagesRequest.model_validate({"messages": MESSAGES, "max_tokens": 9})
    service: Any = ScriptedService(deltas)
    whole = asyncio.run(MessageAnswer(service, request, None).whole())
    assert orjson.loads(orjson.dumps(whole["content"])) == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
    ]
    assert whole["stop_reason"] == "tool_use"
    assert whole["usage"] == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 3,
    }
    events = streamed(deltas)
    assert [(event["type"].removeprefix("content_"), event.get("index")) for event in events] == [
        ("message_start", None),
        *[("block_start", 0), ("block_delta", 0), ("block_stop", 0)],
        *[("block_start", 1), ("block_delta", 1), ("block_stop", 1)],
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert events[4]["content_block"] == {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    assert events[5]["delta"] == {"type": "input_json_delta", "partial_json": '{"a": 1}'}
    assert events[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": whole["usage"],
    }


def test_an_error_ends_the_events() -> None:
    events = streamed([says("I ")], ApiError(503, "the engine has died"))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "error",
    ]
    assert events[-1]["error"] == {"type": "overloaded_error", "message": "the engine has died"}


def streamed(deltas: list[Any], error: ApiError | None = None) -> list[dict[str, Any]]:
    service: Any = ScriptedService(deltas, error)
    answer = MessageAnswer(service, MessagesRequest.model_validate({"messages": MESSAGES, "max_tokens": 9}), None)
    return events_of(asyncio.run(sent(EventStream(answer.events(), tell_error))))
