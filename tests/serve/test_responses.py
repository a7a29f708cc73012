"""OpenAI's responses: its own client against a server that runs, and what a tiny model cannot show."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.serve.conftest import KEY, Served

from tallow.serve.errors import ApiError
from tallow.serve.responses_api import ResponsesRequest, question
from tallow.serve.settings import Limits

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
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def asked(input: Any, **fields: Any) -> Any:
    return question(ResponsesRequest(input=input, **fields), Limits())


def stable(response: Any) -> Any:
    """Without what differs from one response to the next."""
    fields = {
        key: value for key, value in response.to_dict().items() if key not in ("id", "created_at", "completed_at")
    }
    output = [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in fields["output"]]
    usage = fields["usage"] | {"input_tokens_details": None}
    return fields | {"output": output, "usage": usage}


def test_a_response_that_is_cut_says_so(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASKED, instructions="Be brief.", metadata={"a": "b"})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    [item] = response.output
    assert item.type == "message"
    assert item.status == "incomplete"
    assert response.usage is not None
    assert response.usage.output_tokens == 20
    assert response.store is False  # type: ignore[attr-defined]
    assert response.metadata == {"a": "b"}
    assert response.instructions == "Be brief."


def test_the_events_are_the_response_in_pieces(client: openai.OpenAI) -> None:
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
    assert events[0].response.output == []  # type: ignore[union-attr]
    assert events[-1].response.id == events[0].response.id  # type: ignore[union-attr]
    assert stable(events[-1].response) == stable(whole)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "name": "paint"}, {"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "paint"}]}],
)  # fmt: skip
def test_a_tool_is_called_and_its_result_sent_back(client: openai.OpenAI, choice: Any) -> None:
    settings: dict[str, Any] = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    request = ASKED | settings | {"max_output_tokens": 200, "extra_body": {"seed": 3}}
    whole = client.responses.create(**request)
    [call] = whole.output
    assert call.type == "function_call"
    assert call.name == "paint"
    assert json.loads(call.arguments)["colour"] in ("red", "blue")
    assert whole.tool_choice == choice or whole.tool_choice.to_dict() == choice  # type: ignore[union-attr]

    with client.responses.stream(**request) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        streamed = stream.get_final_response()
    assert "".join(pieces) == call.arguments
    assert streamed.output[0].arguments == call.arguments  # type: ignore[union-attr]
    assert streamed.status == whole.status == "completed"

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    history = [{"role": "user", "content": "Paint."}, call.to_dict(), result]
    answer = client.responses.create(**ASKED | {"input": history})
    assert answer.usage is not None
    assert answer.usage.input_tokens > whole.usage.input_tokens  # type: ignore[union-attr]


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        **ASKED | {"max_output_tokens": 100, "extra_body": {"seed": 3}}, text_format=Choice
    )
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Choice)
    json_object = client.responses.create(
        **ASKED | {"extra_body": {"seed": 3}}, text={"format": {"type": "json_object"}}
    )
    assert json_object.output_text.lstrip().startswith("{")


def test_what_there_is_not_is_refused_clearly(client: openai.OpenAI) -> None:
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
    with pytest.raises(openai.BadRequestError, match="context is of 512"):
        client.responses.create(**ASKED | {"input": "a" * 600}, stream=True)


def test_a_key_is_wanted(serve: Any, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alpha:{KEY}\n")
    url = f"{serve('--keys-file', str(keys)).url}/v1"
    with pytest.raises(openai.AuthenticationError, match="needs an API key"):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).responses.create(**ASKED)
    assert openai.OpenAI(base_url=url, api_key=KEY).responses.create(**ASKED).output_text


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
