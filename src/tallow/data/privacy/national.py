"""National ids with check digits, and US social security numbers by their rules.

A number that is written as only such an id is counts wherever it is; bare digits only behind a word that says so, for
one number in ten or so has the right check digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.ru import inn
from stdnum.us import ssn

from tallow.data.privacy.config import Country
from tallow.data.privacy.span import AFTER, BEFORE, Span, is_near, whole_words
from tallow.kernels.text.number_forms import Check

BEFORE_DIGITS, LONGEST = 12, 24
"""Characters of an id that may go before seven digits in a row, and of the longest one."""


def is_snils(number: str) -> bool:
    """Whether the last two of eleven digits check the others (Russian pension insurance, resolution 192p of 2006)."""
    total = sum(weight * int(digit) for weight, digit in zip(range(9, 0, -1), number, strict=False))
    return total % 101 % 100 == int(number[9:]) and int(number[:9]) > 1001998


def is_iranian(number: str) -> bool:
    """Whether the last of ten digits checks the others."""
    rest = sum(weight * int(digit) for weight, digit in zip(range(10, 1, -1), number, strict=False)) % 11
    return int(number[9]) == (rest if rest < 2 else 11 - rest) and len(set(number)) > 1


def is_nir(number: str) -> bool:
    """Whether it has the key and a month that is given (1–12; 20, 30–42 and 50 and more where it is not known)."""
    month = int(number[3:5])
    return (
        number[0] in "123478"
        and (1 <= month <= 12 or month == 20 or 30 <= month <= 42 or month >= 50)
        and nir.is_valid(number)
    )


class Form(NamedTuple):
    """How an id is written.

    Args:
        pattern: Of what surely is one if `is_valid`.
        bare: Of what is one behind one of `words` (as `whole_words` takes them).
        is_valid: Of its letters and ASCII digits, in upper case.
        digits: Sizes of the groups of digits of `pattern`, with what is between them.
        check: Of these digits.
        beside_letter: Seven digits or more of `pattern` before or behind which it has a letter.
        beside_word: Digits of `bare`.
    """

    pattern: str
    is_valid: Callable[[str], bool]
    bare: str = ""
    words: str = ""
    digits: Sequence[str] = ()
    check: Check = ""
    beside_letter: Sequence[str] = ()
    beside_word: Sequence[str] = ()


def _joined(*sizes: int) -> list[str]:
    """Groups of digits with spaces between them, of which any may be left out."""
    if len(sizes) < 2:
        return [str(size) for size in sizes]
    first, second, *rest = sizes
    return [f"{first} {others}" for others in _joined(second, *rest)] + _joined(first + second, *rest)


FORMS: dict[Country, Sequence[Form]] = {
    "us": [
        Form(
            r"\d{3}-\d{2}-\d{4}",
            ssn.is_valid,
            r"\d{9}|\d{3} \d{2} \d{4}",
            r"<ssn>|social.security|<soc\.? ?sec",
            digits=["3-2-4"],
            beside_word=["9", "3 2 4"],
        )
    ],
    "ru": [
        Form(
            r"\d{3}-\d{3}-\d{3}[ \xa0-]\d{2}",
            is_snils,
            r"\d{11}|\d{3} \d{3} \d{3} \d{2}",
            r"снилс|snils",
            digits=["3-3-3 2", "3-3-3-2"],
            beside_word=["11", "3 3 3 2"],
        ),
        Form("", inn.is_valid, r"\d{12}|\d{10}", r"<инн>|<inn>", beside_word=["12", "10"]),
    ],
    "ir": [
        Form(
            r"\d{3}-\d{6}-\d",
            is_iranian,
            r"\d{10}",
            r"کد.?ملی|كد.?ملي|شماره.?ملی|شناسه.?ملی|national code|national id|national number|code.?melli",
            digits=["3-6-1"],
            beside_word=["10"],
        )
    ],
    "cn": [
        Form(
            r"\d{17}[\dXx]|\d{6} \d{8} \d{3}[\dXx]",
            ric.is_valid,
            digits=["18", "6 8 4"],
            check="mod 11",
            beside_letter=["17", "6 8 3"],
        )
    ],
    "de": [
        Form(
            "",
            idnr.is_valid,
            r"\d{11}|\d{2} \d{3} \d{3} \d{3}",
            r"steuer.?id|identifikationsnummer|id.?nr|steuernummer|<tin>|tax.?id|tax.?number",
            beside_word=["11", "2 3 3 3"],
        )
    ],
    "fr": [
        Form(
            r"\d[ \xa0]?\d{2}[ \xa0]?\d{2}[ \xa0]?\d[\dAB][ \xa0]?\d{3}[ \xa0]?\d{3}[ \xa0]?\d{2}",
            is_nir,
            digits=_joined(1, 2, 2, 2, 3, 3, 2),
            check="mod 97",
            beside_letter=_joined(3, 3, 2),
        ),
    ],
    "es": [
        Form(r"(?:\d{8}|\d{2}\.\d{3}\.\d{3})[ -]?[A-Z]", dni.is_valid, beside_letter=["8", "2.3.3"]),
        Form(r"[XYZ]-?\d{7}-?[A-Z]", nie.is_valid, beside_letter=["7"]),
    ],
}
_PATTERNS = {
    country: [
        (
            re.compile(f"{BEFORE}(?:{'|'.join(filter(None, [form.pattern, form.bare]))}){AFTER}"),
            re.compile(form.pattern or "(?!)"),
            whole_words(form.words or "(?!)"),
            form.is_valid,
        )
        for form in forms
    ]
    for country, forms in FORMS.items()
}


def find(text: str, start: int, end: int, countries: Sequence[Country]) -> Iterator[Span]:
    """Ids among digits."""
    if end - start > 7 and sum(map(str.isdecimal, text[start:end])) == 7:
        return  # the only id with seven digits has nothing between them
    start, end = max(0, start - BEFORE_DIGITS), min(len(text), end + 4)
    for country in countries:
        for pattern, sure, words, is_valid in _PATTERNS[country]:
            for match in pattern.finditer(text, start, end):
                if sure.fullmatch(match[0]) or is_near(words, text, match.start(), match.end()):
                    number = plain(match[0])
                    if is_valid(number):
                        yield Span(match.start(), match.end(), "national_id", f"{country} {number}")


def plain(text: str) -> str:
    """Letters in upper case and digits in ASCII, nothing else."""
    return "".join(str(int(c)) if c.isdecimal() else c.upper() for c in text if c.isalnum())
