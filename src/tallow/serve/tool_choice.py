"""What a request says of its tools: their arguments' schemas, and the schema of an answer that must call one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tallow.errors import UsageError

MAX_CALLS = 128
"""In one answer."""


def tool_parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each tool's arguments, by the tool's name.

    Args:
        tools: In OpenAI's form, `{"type": "function", "function": {"name", "parameters"}}`, or without the envelope.
    """
    functions = [tool.get("function") or tool for tool in tools]
    return {
        function["name"]: {"type": "object"} | (function.get("parameters") or {"additionalProperties": False})
        for function in functions
    }


def forced_structure(
    tools: Sequence[Mapping[str, Any]], function: str | None = None, *, max_calls: int = MAX_CALLS
) -> dict[str, Any]:
    """The JSON schema of an answer that must call a tool.

    Args:
        tools: As `tool_parameters`.
        function: The one to call: the answer is its arguments. None: the answer is an array of at least one object with
            the `name` and `arguments` of any of the tools.
        max_calls: The longest array.

    Raises:
        UsageError: There is no such function, or there are no tools, or a schema is nested too deeply.
    """
    schemas = tool_parameters(tools)
    if function is not None:
        if function not in schemas:
            raise UsageError(f"tool_choice names {function}", "it must be one of tools")
        return schemas[function]
    if not schemas:
        raise UsageError("tool_choice wants a call, but there are no tools", "give tools, or leave tool_choice out")
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


def _moved(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema as part of another one: what it refers to in itself is found there."""

    def move(part: dict[str, Any]) -> dict[str, Any]:
        reference = part.get("$ref")
        return part | {"$ref": place + reference[1:]} if isinstance(reference, str) and reference[:1] == "#" else part

    try:
        return json.loads(json.dumps(schema), object_hook=move)
    except RecursionError as error:
        raise UsageError("the parameters of a tool are nested too deeply", "make them simpler") from error
