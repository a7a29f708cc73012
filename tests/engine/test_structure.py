"""What can be asked for, and what is refused before anything is compiled."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tallow.engine.request import SamplingParams
from tallow.engine.structure import MAX_SCHEMA_DEPTH, Structure, read_structure
from tallow.errors import DataError, UsageError
from tallow.evaluate.samples import SampleConfig
from tallow.recipe import parse_section


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names nothing"),
        ({"regex": "a", "json_object": True}, "both json_object and regex"),
        ({"regex": ""}, "regex of structure is empty"),
        ({"choice": ("a", "")}, "choice of structure is empty"),
        ({"choice": "yes"}, "choice is 'yes'"),
        ({"choice": [1]}, "choice is"),
        ({"choice": None}, "choice is None"),
        ({"regex": 5}, "regex is 5"),
        ({"grammar": b"a"}, "grammar is b'a'"),
        ({"json_object": "no"}, "json_object is 'no'"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"json_schema": {"const": "\ud800"}}, "surrogate"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": "[]"}, "not a JSON object"),
        ({"json_schema": "true"}, "not a JSON object"),
        ({"json_schema": {"const": float("nan")}}, "not JSON"),
        ({"json_schema": {"const": b"bytes"}}, "not JSON"),
        ({"json_schema": {"x-guidance": 3}}, "x-guidance"),
        ({"json_schema": nested(MAX_SCHEMA_DEPTH + 1)}, "nested too deeply"),
        ({"json_schema": nested(900)}, "nested too deeply"),
        ({"json_schema": "[" * 200_000}, "nested too deeply"),
        ({"json_schema": {"const": "x" * 300_000}}, "has 300,012 bytes"),
        ({"json_schema": " " * 300_000 + "{}"}, "has 300,002 characters"),
        ({"grammar": "é" * 150_000}, "has 300,000 bytes"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Structure(**settings)


def test_equal_schemas_are_equal_whatever_they_come_as() -> None:
    schema = {"type": "object", "properties": {"é": {}, "a": {}}}
    forms = [schema, MappingProxyType(schema), json.dumps(schema), json.dumps(schema, indent=2)]
    assert len({Structure(json_schema=form) for form in forms}) == 1
    reordered = {"type": "object", "properties": {"a": {}, "é": {}}}  # the order of properties is that of the answer
    assert Structure(json_schema=reordered) != Structure(json_schema=schema)
    Structure(json_schema=nested(MAX_SCHEMA_DEPTH))


@pytest.mark.parametrize(
    "settings",
    [{"json_schema": {"type": "integer"}}, {"choice": ["a", "b"]}, {"json_object": True}, {"regex": "a"}],
)
def test_part_of_a_recipe(settings: dict[str, Any]) -> None:
    values = {"model": "m", "prompts": ["p"], "sampling": {"structure": settings}}
    config = parse_section(SampleConfig, values, "sample")
    assert config.sampling.structure == Structure(**settings)
    assert parse_section(SampleConfig, config.model_dump(mode="json"), "sample") == config


def test_part_of_sampling_parameters() -> None:
    assert SamplingParams().structure is None
    with pytest.raises(UsageError, match="structure"):
        parse_section(SampleConfig, {"model": "m", "sampling": {"structure": {"regexp": "a"}}}, "sample")


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "sums.lark").write_text('start: "1"')
    (tmp_path / "latin").write_bytes(b'{"const": "\xe9"}')
    assert read_structure(None, None, [], None) is None
    expected = Structure(json_schema={"type": "integer"})
    assert read_structure(str(tmp_path / "schema.json"), None, [], None) == expected
    assert read_structure(' {"type":"integer"}', None, [], None) == expected
    assert read_structure(None, None, ["a", "b"], None) == Structure(choice=("a", "b"))
    assert read_structure(None, None, [], tmp_path / "sums.lark") == Structure(grammar='start: "1"')
    with pytest.raises(UsageError, match="both json_schema and regex"):
        read_structure("{}", "a", [], None)
    with pytest.raises(UsageError, match="not UTF-8"):
        read_structure(str(tmp_path / "latin"), None, [], None)
    with pytest.raises(DataError, match="does not exist"):
        read_structure("none.json", None, [], None)
