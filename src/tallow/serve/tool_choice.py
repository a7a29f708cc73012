"""What a request says of its tools: their arguments' schemas, and the schema of an answer that must call one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_CALLS = 128
"""In one answer."""

OPENING = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
COMBINING = {"anyOf", "oneOf", "not", "if", "dependentSchemas", "$ref", "$dynamicRef"}


def tool_parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each tool's arguments, by the tool's name.

    Args:
        tools: As a question has them: `{"name", "parameters"}`.
    """
    return {
        tool["name"]: {"type": "object"} | (tool.get("parameters") or {"additionalProperties": False}) for tool in tools
    }


def forced_structure(
    tools: Sequence[Mapping[str, Any]], function: str | None = None, *, max_calls: int = MAX_CALLS
) -> dict[str, Any]:
    """The JSON schema of an answer that must call a tool.

    Where a schema names an object's properties and says nothing of others, there are none: as with OpenAI's `strict`,
    which wants that to be said. Else a model would make up what no function takes.

    Args:
        tools: As `tool_parameters`; at least one, and not nested more deeply than `check_structure` lets pass.
        function: The one to call: the answer is its arguments. None: the answer is an array of at least one object with
            the `name` and `arguments` of any of the tools.
        max_calls: The longest array.
    """
    schemas = {name: _closed(schema) for name, schema in tool_parameters(tools).items()}
    if function is not None:
        return schemas[function]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{index}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, name in enumerate(schemas)
    ]
    definitions = {str(index): _moved(schema, f"#/$defs/{index}") for index, schema in enumerate(schemas.values())}
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": max_calls, "$defs": definitions}


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the properties that it names and no others.

    One that makes an object of several parts is left as it is: each part would forbid what the others name.
    """
    is_combined = False

    def close(part: dict[str, Any]) -> dict[str, Any]:
        nonlocal is_combined
        names_properties = isinstance(part.get("properties"), dict)
        is_combined |= "allOf" in part or (names_properties and not COMBINING.isdisjoint(part))
        return part | {"additionalProperties": False} if names_properties and OPENING.isdisjoint(part) else part

    closed = _rewritten(schema, close)
    return dict(schema) if is_combined else closed


def _moved(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema as part of another one: what it refers to in itself is found there."""

    def move(part: dict[str, Any]) -> dict[str, Any]:
        reference = part.get("$ref")
        return part | {"$ref": place + reference[1:]} if isinstance(reference, str) and reference[:1] == "#" else part

    return _rewritten(schema, move)


def _rewritten(schema: Mapping[str, Any], rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A schema with each of its parts rewritten, the innermost first."""
    return json.loads(json.dumps(schema), object_hook=rewrite)
