"""OpenAI's own client against a server that runs."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from tests.serve.conftest import Served

MESSAGES: Any = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tallow"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, seed=3, n=2)
    assert len(answer.choices) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 24
    again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, seed=3, n=2)
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 16


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "seed": 1, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**settings, top_logprobs=2)
    texts, usage = ["", ""], None
    scores: list[list[Any]] = [[], []]
    reasons: list[str | None] = [None, None]
    chunks = client.chat.completions.create(
        **settings, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            scores[choice.index] += (choice.logprobs.content or []) if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert scores == [choice.logprobs.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in scores[0])


def test_completions_echo_and_score(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["ab", "abc"], max_tokens=3, echo=True, logprobs=2, temperature=0
    )
    first, second = answer.choices
    assert first.text.startswith("ab")
    assert second.index == 1
    assert second.logprobs is not None
    assert second.logprobs.token_logprobs is not None
    assert second.logprobs.token_logprobs[0] is None
    assert len(second.logprobs.token_logprobs) == 3 + answer.usage.completion_tokens - len(first.logprobs.tokens) + 2  # type: ignore[union-attr, arg-type]
    pieces = client.completions.create(model="tiny", prompt="abc", max_tokens=3, temperature=0, echo=True, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == second.text


@pytest.mark.parametrize("echo", [False, True], ids=["answer", "with prompt"])
def test_streamed_completions_are_scored_and_counted_as_whole_ones(client: openai.OpenAI, echo: bool) -> None:
    prompts = [f"a prompt that is longer than a block, number {number} " for number in range(3)]
    settings: dict[str, Any] = {"model": "tiny", "prompt": prompts, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    settings["echo"] = echo
    client.completions.create(**settings)  # the next two find the prompts cached
    whole = client.completions.create(**settings)
    offsets: list[list[int]] = [[], [], []]
    tokens: list[list[str]] = [[], [], []]
    usage = None
    for chunk in client.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            assert choice.logprobs is not None
            offsets[choice.index] += choice.logprobs.text_offset or []
            tokens[choice.index] += choice.logprobs.tokens or []
        usage = chunk.usage
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.text_offset == offsets[choice.index]
        assert choice.logprobs.tokens == tokens[choice.index]
    assert usage == whole.usage
    assert usage is not None
    if not echo:  # the scores of a prompt are computed again
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 3 * (len(prompts[0]) // 16 * 16)


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=200,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "number", "schema": schema}},
    )
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content)["n"], int)


def test_images_are_refused_clearly(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/never-fetched.png"}}
    with pytest.raises(openai.BadRequestError, match="reads text only") as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [image]}])  # type: ignore[list-item]
    assert refused.value.code == "unsupported_content"


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]},
        },
    }
    for name in ("add", "sum")
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sum"}}], ids=["any", "one"])
def test_a_tool_is_called_where_it_must_be(client: openai.OpenAI, choice: Any) -> None:
    settings: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "seed": 1}
    settings |= {"max_tokens": 200, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**settings)
    [call] = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.type == "function"
    assert call.function.name in (("add", "sum") if choice == "required" else ("sum",))
    assert json.loads(call.function.arguments)["a"] in (1, 22)
    arguments, names, reasons = "", [], []
    for chunk in client.chat.completions.create(**settings, stream=True):
        [part] = chunk.choices
        reasons.append(part.finish_reason)
        for delta in part.delta.tool_calls or ():
            names += [delta.function.name] if delta.function and delta.function.name else []
            arguments += delta.function.arguments or "" if delta.function else ""
    assert names == [call.function.name]
    assert arguments == call.function.arguments
    assert reasons[-1] == "tool_calls"


def test_what_a_tool_has_said_is_read(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "2"}
    said: Any = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    with_tools = client.chat.completions.create(model="tiny", messages=said, max_tokens=5, tools=TOOLS)
    assert with_tools.usage is not None
    told = client.chat.completions.create(model="tiny", messages=[*MESSAGES, result], max_tokens=5)
    assert told.usage is not None
    assert with_tools.usage.prompt_tokens > told.usage.prompt_tokens + 200  # tools and call are part of the prompt
