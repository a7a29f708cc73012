"""Bodies that Python's own JSON reads, and that would fail further on, are refused by every route."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.serve.conftest import Served

from tallow.serve.anthropic_api import MessagesRequest
from tallow.serve.app import make_app
from tallow.serve.embeddings_api import EmbeddingsRequest
from tallow.serve.http import Keys
from tallow.serve.openai_api import template_messages
from tallow.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest
from tallow.serve.responses_api import ResponsesRequest
from tallow.serve.service import Service
from tallow.serve.settings import Limits, ModelSettings, ServeSettings

BODIES = {
    "half a surrogate pair": r'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "half a surrogate pair as a key": r'{"metadata": {"\ud800": "x"}}',
    "not a number": '{"temperature": NaN}',
    "nested too deeply": '{"messages": [' + '{"a": ' * 900 + "1" + "}" * 900 + "]}",
    "cut": '{"messages": [',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_cannot_be_passed_on_are_refused(served: Served, body: str) -> None:
    with served.client() as client:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"):
            response = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400, path
            assert "the body cannot be read" in response.json()["error"]["message"]


def asked(message: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [message]})


@pytest.mark.parametrize("call", [5, {}, {"function": 5}, {"function": {"name": "f"}}])
def test_malformed_calls_in_a_conversation_are_refused(call: object) -> None:
    with pytest.raises(ValidationError, match=r"tool_calls\.0"):
        asked({"role": "assistant", "content": "x", "tool_calls": [call]})


def test_arguments_reach_the_template_as_objects() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": text}} for text in ('{"a": 1}', "")]
    [found] = template_messages(asked({"role": "assistant", "content": None, "tool_calls": calls}).messages, Limits())
    assert [call["function"]["arguments"] for call in found["tool_calls"]] == [{"a": 1}, {}]
    assert found["content"] is None


def test_messages_reach_the_template_with_what_else_they_have() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    [found] = template_messages(
        asked({"role": "developer", "content": parts, "name": "me", "more": 1}).messages, Limits()
    )
    assert found == {"role": "system", "content": "Be brief.", "name": "me", "more": 1}


MANY = 200_000
PART = {"type": "text", "text": ""}
WRONG: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"prompt": [[]] * MANY + [0]}),
    (CompletionRequest, {"prompt": [""] * MANY}),
    (ChatRequest, {"messages": [0] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", "content": [PART] * 1000}] * 200}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}] * 10}),
    (ChatRequest, {"messages": [{"role": "user"}], "tools": [{}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user"}], "stop": [0] * MANY}),
    (ChatRequest, {"messages": [{"role": "user"}], "logit_bias": {f"a{i}": 0 for i in range(MANY)}}),
    (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [0] * MANY}]}),
    (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [PART] * 1000}] * 200}),
    (ResponsesRequest, {"input": [0] * MANY}),
    (ResponsesRequest, {"input": "", "metadata": {f"a{i}": 0 for i in range(MANY)}}),
    (EmbeddingsRequest, {"input": ["", *[0] * MANY]}),
    (DetokenizeRequest, {"tokens": [-1] * MANY}),
]


@pytest.mark.parametrize(("model", "body"), WRONG, ids=lambda value: str(value)[:60])
def test_a_body_of_wrong_items_costs_little(model: type[BaseModel], body: dict[str, Any]) -> None:
    begin = time.process_time()
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    assert time.process_time() - begin < 0.1
    assert refused.value.error_count() <= 4


def collections(schema: Any) -> Iterator[dict[str, Any]]:
    """All lists and mappings in a schema of pydantic's core whose items may be wrong."""
    if isinstance(schema, dict):
        items = schema.get({"list": "items_schema", "dict": "values_schema"}.get(str(schema.get("type")), ""))
        if items is not None and items["type"] != "any":
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from collections(part)


def test_every_list_is_refused_at_its_first_wrong_item() -> None:
    app = make_app(Service(ServeSettings(models={"tiny": ModelSettings(path="tiny")})), Keys({}, None))
    fields = [route.body_field for route in app.routes if isinstance(route, APIRoute)]
    bodies = {field.field_info.annotation for field in fields if field is not None}
    found = [each for body in bodies if body for each in collections(TypeAdapter(body).core_schema)]
    assert len(found) > 15
    assert [each for each in found if not each.get("fail_fast")] == []


def test_a_large_body_of_wrong_items_is_refused_at_once(served: Served) -> None:
    def used_s() -> float:
        fields = (Path("/proc") / str(served.process.pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used_s()
    for path, field, item in (("/v1/completions", "prompt", "[]"), ("/v1/chat/completions", "messages", "0")):
        body = f'{{"{field}": [{",".join([item] * MANY)}, 0]}}'
        with served.client() as client:
            response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert len(response.content) < 1000
    assert used_s() - before < 1


def test_a_key_of_any_length_is_not_told(served: Served) -> None:
    with served.client() as client:
        response = client.post("/v1/completions", json={"prompt": "a", "logit_bias": {"x" * 100_000: 0}})
    assert response.status_code == 400
    assert len(response.content) < 1000


def test_a_body_without_its_type_is_told_so(served: Served) -> None:
    with served.client() as client:
        for headers in ({}, {"Content-Type": "text/plain"}):
            response = client.post("/v1/completions", content='{"prompt": "a"}', headers=headers)
            assert response.status_code == 400
            assert "Content-Type: application/json" in response.json()["error"]["message"]
