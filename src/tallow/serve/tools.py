"""Calls of tools in an answer, as OpenAI's deltas while the answer is written.

Models write calls in a dozen ways, most of them JSON between tags (`tool_formats.py`), and one parser reads them all.
What comes out does not depend on the pieces in which the text comes, and time and memory are linear in it. Arguments
in JSON are passed on while they are written. What turns out to be no call is content, as it stands. Nothing that a
model writes makes the parser raise.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallow.serve.piecewise import Mismatch, PiecewiseText, Steps
from tallow.serve.tool_arguments import declared_types, json_value, object_in_string, parameter_value, python_arguments
from tallow.serve.tool_choice import MAX_CALLS, tool_parameters
from tallow.serve.tool_formats import ToolFormat

MAX_MARKS = 8
"""Tags and punctuation in a row between calls."""

DECORATION = re.compile(r"^functions\.|:\d+$")
"""Of a function's name, as Kimi K2 writes it: `functions.get_weather:0`."""


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a call, as OpenAI streams it.

    Args:
        index: Which call of the answer, from 0.
        id: The call's id, made here; with its first piece only.
        name: The function; with its first piece only.
        arguments: What is added to the arguments' JSON.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class ToolParser:
    """Reads one answer.

    White space around calls is content only if text follows it. A call beyond `MAX_CALLS` is content.

    Args:
        form: How calls are written: `tool_format` of the chat template; `ANY_FORMAT` if the answer is held to
            `forced_structure(tools, function)`.
        tools: The request's, as `tool_parameters`. A call of any other function is content.
        function: The answer is nothing but the arguments of this function.
    """

    def __init__(self, form: ToolFormat, tools: Sequence[Mapping[str, Any]], function: str | None = None) -> None:
        self._form = form
        self._openers = form.openers + (("\n{", "\n[") if form.bare else ())
        self._tools = tool_parameters(tools)
        self._text = PiecewiseText()
        self._space: list[str] = []  # white space behind content
        self._content: list[str] = []
        self._index = -1  # of the latest call
        self._grown: list[tuple[int, str | None, str | None, list[str]]] = []  # as deltas, arguments in pieces
        self._steps = self._answer(function)

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Take the next piece of the answer; returns what is certain by now: content, and pieces of calls."""
        self._text.push(text)
        next(self._steps, None)
        return self._output()

    def finish(self) -> tuple[str, list[ToolCallDelta]]:
        """The answer has ended: returns what was held back. Arguments that have no end are left without."""
        self._text.end()
        next(self._steps, None)
        if self._index < 0:
            self._content += self._space
        return self._output()

    def _output(self) -> tuple[str, list[ToolCallDelta]]:
        content = "".join(self._content)
        deltas = [ToolCallDelta(index, id, name, "".join(parts)) for index, id, name, parts in self._grown]
        self._content, self._grown = [], []
        return content, deltas

    # What has been read turns out to be content, the beginning of a call, or a piece of its arguments.

    def _show(self, text: str) -> None:
        shown = text.rstrip()
        if shown:
            self._content += [*self._space, shown]
            self._space.clear()
        self._space.append(text[len(shown) :])
        self._text.taken.clear()

    def _begin(self, name: str) -> None:
        if self._index + 1 == MAX_CALLS:
            raise Mismatch
        self._index += 1
        self._grown.append((self._index, f"call_{secrets.token_hex(12)}", name, []))
        self._text.taken.clear()

    def _argue(self, text: str) -> None:
        if not self._grown:
            self._grown.append((self._index, None, None, []))
        self._grown[-1][-1].append(text)
        self._text.taken.clear()

    # The grammar of an answer

    def _answer(self, function: str | None) -> Steps[None]:
        while True:
            try:
                if function is not None:
                    yield from self._json_arguments(function)
                yield from self._calls()
            except Mismatch:
                pass
            function = None
            self._show("".join(self._text.taken))
            if not (yield from self._text.until(self._openers, self._show)):
                return

    def _calls(self) -> Steps[None]:
        """Calls one after the other, until something comes that belongs to none of them."""
        form, surely, marks = self._form, False, 0
        while marks < MAX_MARKS:
            mark = yield from self._text.literal(*form.openers, *form.closers, *"{}[],;")
            if not mark:
                return
            called = mark in form.named and (yield from self._text.word_follows())
            if called:
                yield from self._named_call()
            elif mark == "{":
                yield from self._described_call()
                called = True
            surely = surely or called or mark in form.openers
            if surely and (mark in form.closers or mark in "]};"):
                self._text.taken.clear()
            marks = 0 if called else marks + 1

    def _described_call(self) -> Steps[None]:
        """The members of an object that names a function and holds its arguments, in any order."""
        name, arguments, begun, mark = "", "{}", False, ","
        while mark == ",":
            key = yield from self._text.short_string()
            if not (yield from self._text.literal(":")):
                raise Mismatch
            if key in ("name", "tool_name"):
                name = self._known((yield from self._text.short_string()))
            elif key in ("arguments", "parameters") and not begun:
                begun = bool(name) and (yield from self._json_arguments(name))
                if not begun:
                    arguments = yield from self._held_arguments()
            elif key in ("id", "type", "tool_call_id"):
                yield from self._text.short_string()
            else:
                raise Mismatch
            mark = yield from self._text.literal(",", "}")
        if not begun:
            if not name or not mark:
                raise Mismatch
            self._begin(name)
            self._argue(arguments)
        if mark:
            self._text.taken.clear()

    def _held_arguments(self) -> Steps[str]:
        """Arguments that come before the function's name, or as JSON in a string, or are null."""
        mark = yield from self._text.literal("{", '"', "null")
        if mark == "null":
            return "{}"
        if not mark:
            raise Mismatch
        parts = [mark]
        yield from self._text.bracketed(mark, parts.append)
        text = "".join(parts)
        try:
            if mark == '"':
                return object_in_string(text)
            json_value(text)
        except ValueError as error:
            raise Mismatch from error
        return text

    def _named_call(self) -> Steps[None]:
        """A function's name, and then its arguments in whatever form."""
        form = self._form
        name = yield from self._text.word()
        while (yield from self._text.literal(*form.joints)):
            if form.parameter is None and (yield from self._text.word_follows()):
                word = yield from self._text.word()  # it is the name if what came before is the kind of tool
                name = word if word in self._tools else name
        name = self._known(name)
        if (yield from self._json_arguments(name)):
            return
        if form.parameter is not None:
            yield from self._tagged_arguments(name, *form.parameter)
        elif (yield from self._text.literal("(")):
            yield from self._python_arguments(name)
        else:
            raise Mismatch

    def _json_arguments(self, name: str) -> Steps[bool]:
        """If an object comes: the arguments of a function, passed on as they are written."""
        if not (yield from self._text.literal("{")):
            return False
        self._begin(name)
        self._argue("{")
        yield from self._text.bracketed("{", self._argue)
        return True

    def _python_arguments(self, name: str) -> Steps[None]:
        parts = ["("]
        yield from self._text.bracketed("(", parts.append, quotes="\"'")
        try:
            arguments = python_arguments("".join(parts))
        except ValueError as error:
            raise Mismatch from error
        self._begin(name)
        self._argue(arguments)

    def _tagged_arguments(
        self, name: str, before: str, between: tuple[str, ...], behind: tuple[str, ...]
    ) -> Steps[None]:
        """Parameters between tags; strings are passed on while they are written."""
        ends = (*behind, f"\n{before}", *(f"\n{closer}" for closer in self._form.closers))  # one may be forgotten
        properties = self._tools[name].get("properties")
        self._begin(name)
        separator = "{"
        while (yield from self._text.literal(before)):
            key = yield from self._text.word()
            if not (yield from self._text.literal(*between)):
                raise Mismatch
            self._argue(f"{separator}{json.dumps(key)}: ")
            separator = ", "
            types = declared_types(properties.get(key) if isinstance(properties, Mapping) else None)
            if types == {"string"}:
                self._argue('"')
                end = yield from self._text.until(ends, self._argue_in_string)
                value = '"'
            else:
                parts: list[str] = []
                end = yield from self._text.until(ends, parts.append)
                value = parameter_value("".join(parts), types)
            if not end:
                raise Mismatch
            self._argue(value)
            yield from self._text.literal(behind[-1])
        self._argue("{}" if separator == "{" else "}")

    def _argue_in_string(self, text: str) -> None:
        self._argue(json.dumps(text, ensure_ascii=False)[1:-1])

    def _known(self, name: str) -> str:
        for spelling in (name, DECORATION.sub("", name)):
            if spelling in self._tools:
                return spelling
        raise Mismatch
