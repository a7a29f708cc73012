"""Payment cards: Luhn's check digit (ISO/IEC 7812-1), an issuer's first digits and its lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from stdnum import luhn

from tallow.data.privacy.span import AFTER, BEFORE, Span, digits, is_near

_NUMBER = re.compile(
    rf"{BEFORE}(?:\d{{13,19}}|\d{{4}}([ \xa0-])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?"
    rf"|\d{{4}}([ \xa0-])\d{{6}}\2\d{{4,5}}){AFTER}"
)
_WORDS = re.compile(r"card|visa|credit|debit|karte|carte|tarjeta|карт|کارت|卡", re.IGNORECASE)
FORMS = (
    *map(str, range(13, 20)),
    *(
        separator.join(sizes)
        for separator in " -"
        for sizes in (["4"] * 4, *(["4", "4", "4", "4", last] for last in "123"), ["4", "6", "4"], ["4", "6", "5"])
    ),
)
"""Sizes of its groups of digits, with what is between them."""
_LONG = range(16, 20)
_IRAN = (
    5022,
    5029,
    5041,
    5047,
    5054,
    5057,
    5058,
    5076,
    5078,
    5818,
    5859,
    5892,
    5894,
    6037,
    6062,
    6063,
    6104,
    6219,
    6221,
)
_ISSUERS: tuple[tuple[int, int, range | tuple[int, ...]], ...] = (
    (4, 4, (13, 16, 19)),  # Visa
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (300, 305, (14, 16, 19)),  # Diners Club
    (3095, 3095, (14, 16, 19)),
    (36, 36, (14, 16, 19)),
    (38, 39, (14, 16, 19)),
    (6011, 6011, _LONG),  # Discover
    (644, 659, _LONG),
    (3528, 3589, _LONG),  # JCB
    (62, 62, _LONG),  # UnionPay, and banks of Iran
    (2200, 2204, _LONG),  # Mir
    (9792, 9792, (16,)),  # Troy
    (60, 60, (16,)),  # RuPay
    (508, 508, (16,)),
    (81, 82, (16,)),
    *(
        (prefix, prefix, (13, 15, *_LONG)) for prefix in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)
    ),  # Maestro
    *((prefix, prefix, (16,)) for prefix in (*_IRAN, *range(6273, 6282), 6362, 6367, 6369, 6393, 6395, 6396)),
)


def find(text: str, start: int, end: int) -> Iterator[Span]:
    """Cards among digits."""
    if end - start < 13:
        return
    for match in _NUMBER.finditer(text, start, min(len(text), end + 2)):
        number = digits(match[0])
        if is_card(number) and (len(number) > 13 or is_near(_WORDS, text, match.start(), match.end())):
            yield Span(match.start(), match.end(), "card", number)  # thirteen digits are rather a product's


def is_card(number: str) -> bool:
    """Whether ASCII digits are a card's."""
    issued = any(len(number) in lengths().get(number[:size], ()) for size in range(1, 5))
    return issued and luhn.is_valid(number)


@cache
def lengths() -> dict[str, set[int]]:
    """How many digits cards have by what they begin with."""
    found: dict[str, set[int]] = {}
    for low, high, some in _ISSUERS:
        for prefix in range(low, high + 1):
            found.setdefault(str(prefix), set()).update(some)
    return found
