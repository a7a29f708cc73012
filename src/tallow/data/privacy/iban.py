"""Bank accounts: the check digits (mod 97, ISO 13616) and the country's form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from string import ascii_uppercase

from stdnum import iban, numdb
from stdnum.iso7064 import mod_97_10

from tallow.data.privacy.span import AFTER, Span

LONGEST = 34
"""Characters of an account (ISO 13616)."""

UNREGISTERED = {"IR": 26, "DZ": 26, "AO": 25, "MA": 28}
"""Characters of accounts of countries that use IBANs, though they are not in SWIFT's register; digits all but two."""


def find(text: str, start: int) -> Iterator[Span]:
    """The account that begins at a place."""
    pattern = _pattern(text[start : start + 2].upper())
    match = pattern.match(text, start) if pattern else None
    if match and is_iban(number := re.sub(r"[ \xa0-]", "", match[0]).upper()):
        yield Span(start, match.end(), "iban", number)


def is_iban(number: str) -> bool:
    """Whether an account without separators, in upper case, has its check digits and its country's form."""
    if number[:2] in UNREGISTERED:
        return number[2:].isdecimal() and mod_97_10.is_valid(number[4:] + number[:4])
    return iban.is_valid(number)


@cache
def lengths() -> Mapping[str, int]:
    """Letters of countries, and how many characters their accounts have."""
    found = {first + second: _length(first + second) for first in ascii_uppercase for second in ascii_uppercase}
    return {country: length for country, length in found.items() if 4 < length <= LONGEST}


def _length(country: str) -> int:
    form = numdb.get("iban").info(country)[0][1].get("bban", "")
    return UNREGISTERED.get(country) or 4 + sum(map(int, re.findall(r"\d+", form)))


@cache
def _pattern(country: str) -> re.Pattern[str] | None:
    """So many characters as the country's accounts have."""
    length = lengths().get(country)
    return re.compile(rf"[A-Za-z0-9](?:[ \xa0-]?[A-Za-z0-9]){{{length - 1}}}{AFTER}") if length else None
