"""Bank accounts: the check digits (mod 97, ISO 13616) and the country's form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from stdnum import iban, numdb

from tallow.data.privacy.span import AFTER, Span


def find(text: str, start: int) -> Iterator[Span]:
    """The account that begins at a place."""
    pattern = _pattern(text[start : start + 2].upper())
    match = pattern.match(text, start) if pattern else None
    if match and iban.is_valid(number := re.sub(r"[ \xa0-]", "", match[0]).upper()):
        yield Span(start, match.end(), "iban", number)


@cache
def _pattern(country: str) -> re.Pattern[str] | None:
    """So many characters as the country's accounts have."""
    form = numdb.get("iban").info(country)[0][1].get("bban")
    if form is None:
        return None
    length = 4 + sum(map(int, re.findall(r"\d+", form)))
    return re.compile(rf"[A-Za-z0-9](?:[ \xa0-]?[A-Za-z0-9]){{{length - 1}}}{AFTER}")
