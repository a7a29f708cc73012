"""Reading a text that comes in pieces, by coroutines: what they find does not depend on the cutting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

MAX_DEPTH = 64
"""Brackets inside each other."""

MAX_WORD = 128
"""Characters of a name."""

CLOSING = {"{": "}", "[": "]", "(": ")"}
IN_STRING = {quote: re.compile(rf"(?:[^{quote}\\\x00-\x1f]|\\.)*+", re.DOTALL) for quote in "\"'"}
BETWEEN_STRINGS = re.compile(r"[\s\w:,.=+-]*+", re.ASCII)
SHORT_STRING = re.compile(rf'((?:[^"\\\x00-\x1f]|\\.){{0,{MAX_WORD}}}+)"', re.DOTALL)
WORD = re.compile(rf"[\w.:/-]{{0,{MAX_WORD}}}+")
SPACE = re.compile(r"\s*+")

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A coroutine that yields where it needs more text, and returns what it has found."""


class Mismatch(Exception):
    """The text is not what was looked for, or ends before that is certain."""


class PiecewiseText:
    """A text with a place up to which it is read. Each character is looked at a bounded number of times.

    `taken` holds what has been read, until its owner clears it.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []
        self._text, self._at, self._ended = "", 0, False

    def push(self, piece: str) -> None:
        self._text, self._at = self._text[self._at :] + piece, 0

    def end(self) -> None:
        """No more pieces come."""
        self._ended = True

    def literal(self, *literals: str) -> Steps[str]:
        """Reads the first of these literals that comes, behind white space; "" if none does."""
        while True:
            self._take(_end(SPACE, self._text, self._at))
            left = len(self._text) - self._at
            for literal in literals:
                if self._text.startswith(literal, self._at):
                    return self._take(self._at + len(literal))
                if left < len(literal) and literal.startswith(self._text[self._at :]) and not self._ended:
                    break  # it may be coming
            else:
                return ""
            yield

    def word_follows(self) -> Steps[bool]:
        """Whether a name comes, behind white space, which is read.

        Raises:
            Mismatch: The text ends.
        """
        yield from self.literal()
        while self._at == len(self._text):
            yield from self._more()
            yield from self.literal()
        return _end(WORD, self._text, self._at) > self._at

    def word(self) -> Steps[str]:
        """Reads a name.

        Raises:
            Mismatch: There is none, or it is the end of the text.
        """
        while (end := _end(WORD, self._text, self._at)) == len(self._text) and end - self._at < MAX_WORD:
            yield from self._more()
        if end == self._at:
            raise Mismatch
        return self._take(end)

    def short_string(self) -> Steps[str]:
        """Reads a name as a string of JSON, behind white space.

        Raises:
            Mismatch: There is none, it is too long, or it is the end of the text.
        """
        if not (yield from self.literal('"')):
            raise Mismatch
        while not (found := SHORT_STRING.match(self._text, self._at)):
            if len(self._text) - self._at > 2 * MAX_WORD:
                raise Mismatch
            yield from self._more()
        self._take(found.end())
        try:
            return json.loads(f'"{found[1]}"')
        except ValueError as error:
            raise Mismatch from error

    def bracketed(self, opener: str, keep: Callable[[str], object], quotes: str = '"') -> Steps[None]:
        """Passes on what follows an opening bracket or quote: up to its end, or up to what cannot be there.

        Control characters in strings, which JSON forbids and models write, are escaped.

        Raises:
            Mismatch: The text ends before.
        """
        quote, closing = (opener, []) if opener in quotes else ("", [CLOSING[opener]])
        while quote or closing:
            text, end = self._text, self._at
            while quote or closing:
                end = _end(IN_STRING[quote] if quote else BETWEEN_STRINGS, text, end)
                character = text[end : end + 1]
                if not character or (quote and character == "\\"):  # an escape that is not all there
                    break
                if quote and character != quote:
                    keep(self._take(end))
                    self._take(end + 1)
                    keep(json.dumps(character)[1:-1])
                elif quote:
                    quote = ""
                elif character in quotes:
                    quote = character
                elif character == closing[-1]:
                    closing.pop()
                elif character in CLOSING and len(closing) < MAX_DEPTH:
                    closing.append(CLOSING[character])
                else:
                    keep(self._take(end))
                    return
                end += 1
            if (quote or closing) and self._ended:
                end = len(text)
            keep(self._take(end))
            if quote or closing:
                yield from self._more()

    def until(self, ends: tuple[str, ...], keep: Callable[[str], object]) -> Steps[str]:
        """Passes on text up to the first of these, which is not read; "" if the text ends before."""
        while not (found := _one_of(ends).search(self._text, self._at)):
            keep(self._take(len(self._text) if self._ended else _possible_start(self._text, self._at, ends)))
            if self._ended:
                return ""
            yield
        keep(self._take(found.start()))
        return found[0]

    def _take(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        self.taken.append(text)
        return text

    def _more(self) -> Steps[None]:
        if self._ended:
            raise Mismatch
        yield


def _end(run: re.Pattern[str], text: str, start: int) -> int:
    """The end of a run of characters, which may be empty."""
    found = run.match(text, start)
    return found.end() if found else start


@lru_cache
def _one_of(literals: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, literals)))


def _possible_start(text: str, start: int, literals: tuple[str, ...]) -> int:
    """Where a literal may begin that is not all there; the end of the text if none does."""
    for at in range(max(start, len(text) + 1 - max(map(len, literals))), len(text)):
        if any(literal.startswith(text[at:]) for literal in literals):
            return at
    return len(text)
