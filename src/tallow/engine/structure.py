"""What an answer must look like: JSON by a schema, any JSON object, a regular expression, a choice, or a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from pydantic import ConfigDict

from tallow.engine.checks import flag, texts
from tallow.errors import UsageError, reading

MAX_SOURCE_BYTES = 1 << 18
"""Of a schema, an expression, a grammar, or all choices together; the longest schemas in use have some 100,000."""

MAX_SCHEMA_DEPTH = 64
"""Objects and arrays inside each other in a schema; what a recursive one describes may be deeper."""

JSON_WHITESPACE = r" |\n( {0,16}|\t{0,8})"
"""What may stand, once, wherever JSON lets white space be: a blank, or a line's end and an indentation."""

HEADER = '%llguidance {"no_forcing": true} '
"""The model is free in how it cuts a text into tokens; forcing would walk through the forced text without a limit."""


@dataclass(frozen=True)
class Structure:
    """What an answer is held to: exactly one of these.

    In JSON no white space is asked for. Wherever JSON lets it be, one blank may stand, or one line's end with an
    indentation of at most 16 blanks or 8 tabs, so that no model goes on with blanks for ever; a schema's own
    `x-guidance` (see llguidance) may say otherwise.

    Args:
        json_schema: A JSON schema, as a mapping or as text. Properties come in the schema's order.
        json_object: Any JSON object.
        regex: What the whole answer matches, in Rust's syntax: no look-around and no back-references.
        choice: The answer is one of these texts.
        grammar: A context-free grammar in llguidance's variant of Lark, with a rule `start`.

    Raises:
        UsageError: None or several of them are given, or one is empty, too long, too deep, not JSON, or not Unicode.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # where it is part of a recipe

    json_schema: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", texts("choice", self.choice))
        flag("json_object", self.json_object)
        for name in ("regex", "grammar"):
            if not isinstance(text := getattr(self, name), str | None):
                raise UsageError(f"{name} is {shown(text)}", "it must be a text")
        given = [name for name in self.__dataclass_fields__ if getattr(self, name) not in (None, False, ())]
        if len(given) != 1:
            named = f"both {given[0]} and {given[1]}" if given else "nothing"
            raise UsageError(f"structure names {named}", f"give one of {', '.join(self.__dataclass_fields__)}")
        if self.json_schema is not None:  # as text: hashable, and not to be changed from outside
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        if not all(self._parts()):
            raise UsageError(f"{given[0]} of structure is empty", "leave it out, or say what the answer must be")
        try:
            size = sum(len(part.encode()) for part in self._parts())
        except UnicodeEncodeError as error:
            raise UsageError(f"{given[0]} of structure holds half a surrogate pair", "give valid Unicode") from error
        if size > MAX_SOURCE_BYTES:
            raise UsageError(
                f"{given[0]} of structure has {size:,} bytes", f"at most {MAX_SOURCE_BYTES:,} can be taken"
            )

    def source(self) -> str:
        """The structure as llguidance takes it: a JSON object with a list of grammars, the first of which counts."""
        from llguidance import regex_to_lark

        if self.json_object or self.json_schema is not None:
            schema: dict[str, Any] = json.loads(str(self.json_schema or '{"type":"object"}'))
            schema["x-guidance"] = {"whitespace_pattern": JSON_WHITESPACE} | schema.get("x-guidance", {})
            return _grammars({"lark_grammar": HEADER + "start: @schema"}, {"name": "schema", "json_schema": schema})
        if self.regex is not None:
            return _grammars({"lark_grammar": f"{HEADER}start: /{regex_to_lark(self.regex, use_ascii='')}/"})
        if self.choice:
            choices = " | ".join(_quoted(choice) for choice in self.choice)
            return _grammars({"lark_grammar": f"{HEADER}start: CHOICE\nCHOICE: {choices}"})
        return _grammars({"lark_grammar": f"{HEADER}{self.grammar}"})

    def _parts(self) -> list[str]:
        one = [text for text in (self.json_schema, self.regex, self.grammar) if isinstance(text, str)]
        return [*one, *self.choice]


@dataclass(frozen=True)
class CompileLimits:
    """What compiling one structure may take.

    Args:
        cpu_s: Seconds of processor time.
        memory_bytes: Memory beyond what the worker has at its start.
    """

    cpu_s: float = 10.0
    memory_bytes: int = 1 << 30


def read_structure(
    json_schema: str | None, regex: str | None, choice: Sequence[str], grammar: Path | None
) -> Structure | None:
    """The structure that a command line names; None if it names none.

    Args:
        json_schema: The schema itself if it is JSON or begins with a brace, else the file that holds it.
        regex: The expression.
        choice: The texts to choose from.
        grammar: The file of a grammar.

    Raises:
        DataError: A file is missing or is not UTF-8 text.
        UsageError: As `Structure`.
    """
    if json_schema is None and regex is None and not choice and grammar is None:
        return None
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        if not json_schema.strip() or _is_json(json_schema):
            raise UsageError(
                f"the JSON schema {shown(json_schema)} is no JSON object",
                'give one, such as {"type": "integer"}, or the name of a file that holds one',
            )
        json_schema = _read(Path(json_schema), "JSON schema")
    text = _read(grammar, "grammar") if grammar is not None else None
    return Structure(json_schema=json_schema, regex=regex, choice=tuple(choice), grammar=text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read(path: Path, what: str) -> str:
    with reading(path, what):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{what} {path} is not UTF-8 text", "save it as UTF-8") from error


def _schema_text(schema: Mapping[str, Any] | str) -> str:
    """A schema as compact JSON, its keys in their order."""
    try:
        if isinstance(schema, str):
            if len(schema) > MAX_SOURCE_BYTES:
                raise UsageError(f"json_schema has {len(schema):,} characters", f"at most {MAX_SOURCE_BYTES:,} fit")
            schema = json.loads(schema)
        elif isinstance(schema, Mapping):
            schema = dict(schema)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        raise UsageError("json_schema is nested too deeply", f"at most {MAX_SCHEMA_DEPTH} levels") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"json_schema is not JSON: {error}", "give a JSON object") from error
    if not isinstance(schema, Mapping):
        raise UsageError(
            f"json_schema is {text[:40]}, not a JSON object", "give the schema's keywords and their values"
        )
    if not isinstance(schema.get("x-guidance", {}), Mapping):
        raise UsageError("x-guidance in json_schema is not a JSON object", "leave it out")
    if any(depth > MAX_SCHEMA_DEPTH for depth in _depths(json.loads(text))):
        raise UsageError("json_schema is nested too deeply", f"at most {MAX_SCHEMA_DEPTH} levels")
    return text


def _depths(value: Any) -> Iterator[int]:
    """The depth of each object and array in a JSON value."""
    waiting = [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, dict | list):
            yield depth
            waiting += [(inner, depth + 1) for inner in (part.values() if isinstance(part, dict) else part)]


def _quoted(text: str) -> str:
    """As a string of a grammar, which has no room for the one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _grammars(*grammars: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": grammars}, ensure_ascii=False)
