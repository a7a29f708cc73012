"""OpenAI's own client against a server that runs."""

from __future__ import annotations

import json

import openai
import pytest
from tests.serve.conftest import Served

MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tallow"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, seed=3, n=2)  # type: ignore[arg-type]
    assert len(answer.choices) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 24
    again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, seed=3, n=2)  # type: ignore[arg-type]
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "seed": 1, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**settings, top_logprobs=2)  # type: ignore[call-overload]
    texts, scores, reasons, usage = ["", ""], [[], []], [None, None], None
    chunks = client.chat.completions.create(
        **settings, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            scores[choice.index] += choice.logprobs.content if choice.logprobs else []
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


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,  # type: ignore[arg-type]
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
