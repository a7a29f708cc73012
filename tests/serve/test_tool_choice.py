"""Schemas of answers that must call a tool, as llguidance takes them."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from tallow.engine.structure import Structure
from tallow.serve.errors import ApiError
from tallow.serve.requests import check_structure
from tallow.serve.settings import Limits
from tallow.serve.tool_choice import forced_structure

LIST = {"type": "object", "properties": {"x": {"type": "integer"}, "next": {"$ref": "#/$defs/List"}}, "required": ["x"]}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "add",
        "parameters": {
            "properties": {"list": {"$ref": "#/$defs/List"}},
            "required": ["list"],
            "additionalProperties": False,
            "$defs": {"List": LIST | {"additionalProperties": False}},
        },
    },
    {"name": "now"},
    {"name": "tree", "parameters": {"properties": {"child": {"$ref": "#"}}, "additionalProperties": False}},
]


def fits(schema: dict[str, Any], answer: str) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, Structure(json_schema=schema).source())
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_str(answer)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize(("answer", "fitting"), [
    ('[{"name": "add", "arguments": {"list": {"x": 1, "next": {"x": 2}}}}]', True),
    ('[{"name": "now", "arguments": {}}, {"name": "tree", "arguments": {"child": {"child": {}}}}]', True),
    ("[]", False),
    ('[{"name": "other", "arguments": {}}]', False),
    ('[{"name": "add", "arguments": {"list": {"x": "1"}}}]', False),
    ('[{"name": "tree", "arguments": {"child": {"other": {}}}}]', False),
    ('[{"name": "now", "arguments": {"a": 1}}]', False),
    ('[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', False),
])  # fmt: skip
def test_any_tool(answer: str, fitting: bool) -> None:
    assert fits(forced_structure(TOOLS, max_calls=2), answer) is fitting


@pytest.mark.parametrize(("function", "answer", "fitting"), [
    ("add", '{"list": {"x": 1, "next": {"x": 2}}}', True),
    ("add", "{}", False),
    ("now", "{}", True),
    ("now", '{"a": 1}', False),
    ("tree", '{"child": {}}', True),
])  # fmt: skip
def test_one_tool(function: str, answer: str, fitting: bool) -> None:
    assert fits(forced_structure(TOOLS, function), answer) is fitting


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}
NAMED = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(("parameters", "answer", "fitting"), [
    (POINT, '{"x": 1}', True),
    (POINT, '{"x": 1, "y": 2}', False),
    (POINT | {"additionalProperties": True}, '{"x": 1, "y": 2}', True),
    (POINT | {"additionalProperties": {"type": "string"}}, '{"y": "a"}', True),
    ({"properties": {"point": POINT}}, '{"point": {"x": 1, "y": 2}}', False),
    ({"properties": {"any": {"type": "object"}}}, '{"any": {"y": 2}}', True),
    ({"properties": {"a": {"anyOf": [POINT, NAMED]}}}, '{"a": {"name": "b"}}', True),
    ({"properties": {"a": {"anyOf": [POINT, NAMED]}}}, '{"a": {"y": 2}}', False),
    ({"allOf": [POINT, NAMED]}, '{"x": 1, "name": "b"}', True),
    (POINT | {"$defs": {"Named": NAMED}, "$ref": "#/$defs/Named"}, '{"x": 1, "name": "b"}', True),
])  # fmt: skip
def test_properties_that_a_schema_does_not_name(parameters: dict[str, Any], answer: str, fitting: bool) -> None:
    """There are none, unless it says so, or is made of parts each of which names some."""
    tools = [{"name": "f", "parameters": parameters}]
    assert fits(forced_structure(tools, "f"), answer) is fitting
    assert fits(forced_structure(tools), f'[{{"name": "f", "arguments": {answer}}}]') is fitting


def test_tools_are_as_deep_as_any_settings_let_pass() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"name": "f", "parameters": reduce(lambda part, _: {"items": part}, range(depth), {})}

    limits = Limits(schema_depth=10**6)
    check_structure(nested(250), limits, "tools")
    assert str(forced_structure([nested(250)])).count("items") == 250 + 1
    with pytest.raises(ApiError, match="cannot be read"):
        check_structure(nested(300), limits, "tools")
