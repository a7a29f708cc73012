"""Arguments of calls that models write in Python's syntax, or as plain text, as JSON.

Python's own parser is not asked: text of strangers can exhaust its stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

TOKEN = re.compile(
    r"""\s*+(?:
        (?P<keyword>[^\W\d]\w*+)\s*+=
        | (?P<string>'(?:[^'\\]|\\.)*+' | "(?:[^"\\]|\\.)*+")
        | (?P<word>[\w.+-]++)
        | (?P<trailing>,(?=\s*+[)\]}]))
        | (?P<mark>[(){}\[\]:,])
    )""",
    re.VERBOSE | re.DOTALL,
)
ESCAPE = re.compile(r'\\(?:x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}|.)|["\x00-\x1f]', re.DOTALL)
CONSTANTS = {"True": "true", "False": "false", "None": "null"}
MARKS = {"(": "[", ")": "]", ",": ", ", ":": ": "}


def json_value(text: str) -> Any:
    """The value of a text that is JSON, and nothing that only Python's reader takes for it.

    Raises:
        ValueError: It is not.
    """

    return from_json(text, allow_inf_nan=False)


def object_in_string(text: str) -> str:
    """The JSON object that a JSON string spells, as some models write arguments.

    Raises:
        ValueError: It spells something else.
    """
    inner = json_value(text)
    if not isinstance(inner, str) or not isinstance(json_value(inner), dict):
        raise ValueError(f"{text[:40]!r} spells no JSON object")
    return inner


def python_arguments(text: str) -> str:
    """The JSON object that keyword arguments make.

    Args:
        text: Such as `(city="Rome", days=[1, 2])`, with its parentheses; keywords and literals only. Numbers must be
            numbers of JSON, too. JSON's constants are taken as well as Python's; a tuple becomes an array.

    Raises:
        ValueError: It is something else.
    """
    parts: list[str] = []
    at = 0
    while token := TOKEN.match(text, at):
        at = token.end()
        if keyword := token["keyword"]:
            parts.append(f"{json.dumps(keyword, ensure_ascii=False)}: ")
        elif string := token["string"]:
            parts.append(f'"{ESCAPE.sub(_escape, string[1:-1])}"')
        elif word := token["word"]:
            parts.append(CONSTANTS.get(word, word))
        elif mark := token["mark"]:
            parts.append(MARKS.get(mark, mark))
    arguments = f"{{{''.join(parts[1:-1])}}}"
    if at < len(text) or parts[0] != "[" or not isinstance(json_value(arguments), dict):
        raise ValueError(f"{text[:40]!r} are not keyword arguments")
    return arguments


def declared_types(schema: Any) -> frozenset[str]:
    """The JSON types that a parameter's schema names, also as alternatives."""
    types: set[str] = set()
    if isinstance(schema, Mapping):
        for alternatives in ([schema], schema.get("anyOf"), schema.get("oneOf")):
            for part in alternatives if isinstance(alternatives, list) else []:
                named = part.get("type") if isinstance(part, Mapping) else None
                types.update(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
    return frozenset(types)


def parameter_value(text: str, types: frozenset[str]) -> str:
    """A parameter's text as JSON: where it may be a string, it is one."""
    if "string" not in types or (text == "null" and "null" in types):
        value = CONSTANTS.get(text.strip(), text)
        try:
            json_value(value)
        except ValueError:
            return json.dumps(text, ensure_ascii=False)
        return value
    return json.dumps(text, ensure_ascii=False)


def _escape(found: re.Match[str]) -> str:
    """What may stand in a string of Python, as it is written in one of JSON."""
    escape = found[0]
    if escape[0] != "\\":
        return json.dumps(escape)[1:-1]
    if len(escape) > 2:
        return json.dumps(chr(int(escape[2:], 16)))[1:-1]
    if escape[1] in '"\\bfnrtu':
        return escape
    return "'" if escape[1] == "'" else "\\\\" + json.dumps(escape[1])[1:-1]  # Python keeps what it does not know
