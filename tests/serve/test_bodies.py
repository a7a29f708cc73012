"""Bodies that Python's own JSON reads, and that would fail further on, are refused by every route."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.serve.conftest import Served

from tallow.serve.openai_api import template_messages
from tallow.serve.requests import ChatRequest

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
    [found] = template_messages(asked({"role": "assistant", "content": None, "tool_calls": calls}).messages)
    assert [call["function"]["arguments"] for call in found["tool_calls"]] == [{"a": 1}, {}]
    assert found["content"] is None


def test_messages_reach_the_template_with_what_else_they_have() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    [found] = template_messages(asked({"role": "developer", "content": parts, "name": "me", "more": 1}).messages)
    assert found == {"role": "system", "content": "Be brief.", "name": "me", "more": 1}
