"""OpenAI's responses: its own client against a server that runs, and what a tiny model cannot show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.serve.conftest import Served
from tests.serve.scripted import ScriptedService, events_of, says, sent

from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream
from tallow.serve.responses_api import ResponseAnswer, ResponsesRequest, question
from tallow.serve.settings import Limits
from tallow.serve.tools import ToolCallDelta

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "paint",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "input": "Say something.",
    "max_output_tokens": 20,
    "extra_body": {"seed": 3, "structured_outputs": {"regex": "[a-z]{40}"}},
}


class Choice(BaseModel):
    answer: bool


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def asked(input: Any, **fields: Any) -> Any:
    return question(ResponsesRequest.model_validate({"input": input} | fields), Limits())


def stable(response: Any) -> Any:
    """Without what differs from one response to the next."""
    fields = {
        key: value for key, value in response.to_dict().items() if key not in ("id", "created_at", "completed_at")
    }
    output = [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in fields["output"]]
    usage = fields["usage"] | {"input_tokens_details": None}
    return fields | {"output": output, "usage": usage}


def test_a_response_that_is_cut_says_so(client: Any) -> None:
    ignored = {"parallel_tool_calls": None, "reasoning": {"effort": "low"}, "store": True, "include": []}
    response = client.responses.create(**ASKED, **ignored, instructions="Be brief.", metadata={"a": "b"})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    [item] = response.output
    assert item.type == "message"
    assert item.status == "incomplete"
    assert response.usage is not None
    assert response.usage.output_tokens == 20
    assert response.store is False
    assert response.reasoning.effort is None
    assert response.parallel_tool_calls
    assert response.metadata == {"a": "b"}
    assert response.instructions == "Be brief."


def test_the_events_are_the_response_in_pieces(client: Any) -> None:
    whole = client.responses.create(**ASKED)
    events = list(client.responses.create(**ASKED, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.output == []
    assert events[-1].response.id == events[0].response.id
    assert stable(events[-1].response) == stable(whole)


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "name": "paint"}, {"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "paint"}]}],
)  # fmt: skip
def test_a_tool_is_called_and_its_result_sent_back(client: Any, choice: Any) -> None:
    settings: dict[str, Any] = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    request = ASKED | settings | {"max_output_tokens": 200, "extra_body": {"seed": 3}}
    whole = client.responses.create(**request)
    [call] = whole.output
    assert call.type == "function_call"
    assert call.name == "paint"
    assert json.loads(call.arguments)["colour"] in ("red", "blue")
    assert whole.tool_choice == choice or whole.tool_choice.to_dict() == choice

    with client.responses.stream(**request) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        streamed = stream.get_final_response()
    assert "".join(pieces) == call.arguments
    assert streamed.output[0].arguments == call.arguments
    assert streamed.status == whole.status == "completed"

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    history = [{"role": "user", "content": "Paint."}, call.to_dict(), result]
    answer = client.responses.create(**ASKED | {"input": history, "tools": [TOOL]})
    assert answer.usage is not None
    assert answer.usage.input_tokens > whole.usage.input_tokens


def test_a_schema_is_kept(client: Any) -> None:
    request = ASKED | {"max_output_tokens": 100, "extra_body": {"seed": 3}}
    response = client.responses.parse(**request, text_format=Choice)
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Choice)
    json_object = client.responses.create(**request, text={"format": {"type": "json_object"}})
    assert json_object.output_text.lstrip().startswith("{")


def test_what_there_is_not_is_refused_clearly(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="not stored; send the whole conversation") as refused:
        client.responses.create(**ASKED, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="conversations are not stored"):
        client.responses.create(**ASKED, conversation="conv_1", stream=True)
    image = {"type": "input_image", "image_url": "http://127.0.0.1:1/never-fetched.png", "detail": "auto"}
    with pytest.raises(openai.BadRequestError, match="reads text only") as refused:
        client.responses.create(**ASKED | {"input": [{"role": "user", "content": [image]}]})
    assert refused.value.code == "unsupported_content"
    with pytest.raises(openai.BadRequestError, match=r"tools\.0\.type"):
        client.responses.create(**ASKED, tools=[{"type": "web_search"}])
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.responses.create(**ASKED | {"model": "other"}, stream=True)
    with pytest.raises(openai.BadRequestError, match="context is of"):
        client.responses.create(**ASKED | {"input": "a" * 5000}, stream=True)


def test_items_become_turns() -> None:
    call = {"type": "function_call", "name": "f", "arguments": '{"n": 1}'}
    items = [
        {"role": "developer", "content": "Be exact."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": [
            {"type": "output_text", "text": "I look"}, {"type": "refusal", "refusal": "!"}]},
        call | {"call_id": "1"},
        call | {"call_id": "2"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
        {"role": "user", "content": "b"},
        {"role": "user", "content": "c"},
    ]  # fmt: skip
    function = {"name": "f", "arguments": {"n": 1}}
    assert list(asked(items, instructions="Be brief.").messages) == [
        {"role": "system", "content": "Be brief.\n\nBe exact."},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "I look!",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in ("1", "2")],
        },
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "x"},
        {"role": "tool", "tool_call_id": "2", "name": "f", "content": "y"},
        {"role": "user", "content": "b\n\nc"},
    ]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "the conversation is empty"),
        ([{"role": "user", "content": 5}], "not taken"),
        ([{"role": "tool", "content": "x"}], "not taken"),
        ([{"type": "item_reference", "id": "msg_1"}], "'item_reference'"),
        ([{"type": "function_call_output", "call_id": "1", "output": "x"}], "no call before it"),
        ([{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}], "not JSON"),
        ([{"type": "function_call", "call_id": "1", "name": "f", "arguments": "[]"}], "no JSON object"),
        ([{"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a":' * 999}], "not JSON"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 1025, "at most 2048"),
    ],
)
def test_malformed_items_are_refused(items: list[Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        asked(items)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "no tool 'g'"),
        ({"tools": [TOOL] * 129}, "at most 128 tools"),
        ({"tools": [TOOL | {"parameters": {"maximum": 10**30}}]}, "cannot be read"),
        ({"tools": [TOOL | {"parameters": {"description": "x" * 70000}}]}, "at most 65,536"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "no schema"),
        ({"stop": ["x"] * 17}, "at most 16 strings"),
        ({"background": True}, "no background here"),
        ({"top_logprobs": 2}, "/v1/chat/completions"),
    ],
)
def test_what_is_too_much_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        asked("a", **fields)
    assert refused.value.status == 400


def test_settings_reach_the_engine() -> None:
    format = {"type": "json_schema", "name": "a", "schema": {"type": "integer"}, "strict": True}
    found = asked("a", temperature=0.5, top_p=0.9, max_output_tokens=7, text={"format": format, "verbosity": "low"})
    given = {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "structure": {"json_schema": {"type": "integer"}}}
    assert found.params == given | {"ignore_eos": False, "stop": []}
    other = TOOL | {"name": "other"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    found = asked("a", tools=[TOOL, other], tool_choice=allowed)
    assert [tool["name"] for tool in found.tools] == ["other"]
    assert found.tool_choice == "auto"
    assert found.most_calls > 1
    found = asked("a", tools=[TOOL], tool_choice={"type": "function", "name": "paint"}, parallel_tool_calls=False)
    assert (found.tool_choice, found.most_calls) == (":paint", 1)


def test_text_and_calls_are_told_in_order() -> None:
    calls = [ToolCallDelta(0, "1", "f", '{"a"'), ToolCallDelta(0, None, None, ": 1}"), ToolCallDelta(1, "2", "g", "{}")]
    deltas = [says("I look."), says("", *calls), says("", end="tool_calls")]
    events = streamed(deltas)
    message = ["added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "done"]
    call = ["added", "function_call_arguments.delta", "function_call_arguments.done", "done"]
    expected = ["created", "in_progress", *message, *call[:2], *call[1:], *call, "completed"]
    assert [event["type"].removeprefix("response.").removeprefix("output_item.") for event in events] == expected
    assert events[9]["delta"] + events[10]["delta"] == events[11]["arguments"] == '{"a": 1}'
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output == [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["call_id"] for item in output[1:]] == ["1", "2"]
    usage = events[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 3, 10)
    assert usage["input_tokens_details"]["cached_tokens"] == 3


def test_an_error_ends_the_events() -> None:
    *_, last = streamed([says("I ")], ApiError(503, "the engine has died"))
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine has died"}
    assert last["response"]["output"][0]["content"][0]["text"] == "I "
    assert last["response"]["output"][0]["status"] == "incomplete"


def streamed(deltas: list[Any], error: ApiError | None = None) -> list[dict[str, Any]]:
    service: Any = ScriptedService(deltas, error)
    answer = ResponseAnswer(service, ResponsesRequest.model_validate({"input": "a"}), None)
    return events_of(asyncio.run(sent(EventStream(answer.events(), answer.tell_error))))
