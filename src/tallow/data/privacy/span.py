"""A place in a text where something private is, and what finders of such places share."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

Kind = Literal["secret", "wallet", "email", "iban", "card", "ip", "national_id", "phone", "name"]

KINDS: tuple[Kind, ...] = ("secret", "wallet", "email", "iban", "card", "ip", "national_id", "phone", "name")
"""The surest first: of two that overlap, the surer one counts, then the earlier one."""

BEFORE = r"(?<![^\W\u0590-\U0010ffff])(?<!\d)(?<!\d[-.])"
"""Nothing goes on here: no digit, and no letter of a script that is written with spaces and cases."""

AFTER = r"(?![^\W\u0590-\U0010ffff])(?!\d)(?![-.]\d)"


_PLACEHOLDERS = re.compile(rf"<?(?:{'|'.join(kind.upper() for kind in KINDS)})_(?:[0-9]{{1,9}}(?:>|\Z)|\Z)")
"""Such as the scrubbed text has, also if they are cut."""
_OPERATOR = re.compile(r"\\?.\?|\.")


class Span(NamedTuple):
    """Characters of a text.

    Args:
        value: What they say, however it is written: equal values get the same placeholder.
    """

    start: int
    end: int
    kind: Kind
    value: str


def choose(spans: Iterable[Span]) -> list[Span]:
    """Those that do not overlap surer ones, in their order."""
    chosen = sorted(spans)
    if all(before.end <= after.start for before, after in pairwise(chosen)):
        return chosen
    spans, chosen = chosen, []
    for span in sorted(spans, key=lambda span: (KINDS.index(span.kind), span.start, -span.end, span.value)):
        place = bisect_left(chosen, span)
        if (place == 0 or chosen[place - 1].end <= span.start) and (
            place == len(chosen) or span.end <= chosen[place].start
        ):
            insort(chosen, span)
    return chosen


def digits(text: str) -> str:
    """The digits of a text, in ASCII."""
    if text.isascii():
        return "".join(filter(str.isdecimal, text))
    return "".join(str(unicodedata.decimal(character)) for character in text if character.isdecimal())


def is_near(words: re.Pattern[str], text: str, start: int, end: int, before: int = 40, after: int = 0) -> bool:
    """Whether one of some words is on the same line, within so many characters."""
    behind = text[max(0, start - before) : start].rpartition("\n")[2]
    ahead = text[end : end + after].partition("\n")[0]
    return _has_word(words, behind) or (after > 0 and _has_word(words, ahead))


def _has_word(words: re.Pattern[str], text: str) -> bool:
    """Whether one of some words is there, and not only in placeholders: a number beside `<PHONE_1>` is no phone."""
    return words.search(text) is not None and words.search(_PLACEHOLDERS.sub(" ", text)) is not None


def literals(pattern: str) -> list[str]:
    """For each alternative of a pattern as `whole_words` takes it, what is in all that it matches, in lower case.

    The alternatives have no operators but `.`, and `?` behind a character.
    """
    pieces = (_OPERATOR.split(alternative) for alternative in pattern.split("|"))
    return [max(reversed(parts), key=len).lower() for parts in pieces]


def whole_words(pattern: str) -> re.Pattern[str]:
    """A pattern in which `<` and `>` stand for where a word begins and ends, beside Chinese too; cases are alike."""
    letter = r"[^\W\u0590-\U0010ffff]"
    return re.compile("".join({"<": f"(?<!{letter})", ">": f"(?!{letter})"}.get(c, c) for c in pattern), re.IGNORECASE)
