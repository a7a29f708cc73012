"""Phone numbers that the plan of their country has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat

from tallow.data.privacy.phone_plan import may_be_usual, may_be_valid
from tallow.data.privacy.span import Span, digits, is_near, whole_words

MIN_DIGITS, MAX_DIGITS = 7, 17
"""Of a number as it is dialled: at most 15 (ITU-T E.164) behind a 00."""
LONGEST = 3 * MAX_DIGITS

WORDS = (
    r"phone|<tel>|<call|<cell>|<fax>|mobile|office|whatsapp|contact|<reach>|answering|<dial>|<text>|<sms>"
    r"|telefon|handy|<ruf|téléphone|appel|portable|teléfono|móvil|llama|llame|<тел>|телефон|звон|факс|<моб"
    r"|تلفن|موبایل|تماس|همراه|فکس|نمابر|شماره|电话|電話|手机|手機|联系|聯繫|致电|传真|热线"
)
"""Words without operators, but for `|`, `<` and `>` (`whole_words`)."""
_WORDS = whole_words(WORDS)
_OTHERS = whole_words(r"<(?:инн|inn|ssn|order|invoice|id)>|снилс|isbn|issn|کد.?ملی|کد.?پستی")
_NOT_A_PHONE = re.compile(  # a date, an ISBN
    r"(?:(?:19|20)\d\d([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2(?:19|20)?\d\d)(?!\d|[-./]\d)|97[89][- ]\d"
)
_EXTENSION = re.compile(r"[ ,]{0,2}(?:x|ext\.?|extension|доб\.?|داخلی|转)[ ]?\d{1,6}(?!\w)", re.IGNORECASE)
_LEAD = re.compile(r"\(?[+＋]?\(?")
_BRACKETED = re.compile(r"\([^(]*\d")
_PIECE = re.compile(r"[\d(][^ \xa0]*\d")
_BEFORE = r"[^\W\u0590-\U0010ffff]|[\d$€£#/\\]"
_TOUCHES, _GOES_ON_BEFORE = (re.compile(rf"(?:{_BEFORE}{more})\Z") for more in ("", r"|\d[.,:-]"))
_GOES_ON = re.compile(r"[^\W\u0590-\U0010ffff]|[\d%€$£]|\.[A-Za-z]")
"""A longer number, an amount, the name of a file."""


def find(text: str, start: int, end: int, regions: Sequence[str], possible: bool) -> Iterator[Span]:
    """The phone number that digits with separators are, or those that begin with brackets or are between its spaces.

    Args:
        regions: Countries whose numbers are told without the country's code.
        possible: Whether the right length suffices beside a word such as "call".
    """
    whole = _find(text, start, end, regions, possible)
    if whole is not None:
        yield whole
        return
    for pieces in (_BRACKETED, _PIECE):
        spans = [
            span
            for piece in pieces.finditer(text, max(0, start - 1), end)
            if piece.span() != (start, end)
            and (span := _find(text, piece.start(), piece.end(), regions, possible)) is not None
        ]
        if spans:
            yield from spans
            return


def _find(text: str, start: int, end: int, regions: Sequence[str], possible: bool) -> Span | None:
    if end - start > LONGEST or not MIN_DIGITS <= sum(map(str.isdecimal, text[start:end])) <= MAX_DIGITS:
        return None
    lead = _LEAD.match(text[max(0, start - 3) : start][::-1])
    start -= len(lead[0]) if lead else 0
    if text[start] == "(" and text.count("(", start, end) > text.count(")", start, end):
        start += 1  # of a parenthesis around it
    extension = _EXTENSION.match(text, end)
    before = _TOUCHES if text[start] in "+＋" else _GOES_ON_BEFORE  # a plus begins anew: the next cell of a table
    if before.search(text[max(0, start - 2) : start]) or (not extension and _GOES_ON.match(text, end)):
        return None
    near = is_near(_WORDS, text, start, end, after=12) and not is_near(_OTHERS, text, start, end, before=20)
    value = _number(text[start:end], near, tuple(regions), possible)
    if value is None or extension is None:
        return Span(start, end, "phone", value) if value else None
    return Span(start, extension.end(), "phone", f"{value} x{digits(extension[0])}")


@lru_cache(4096)
def _number(raw: str, near: bool, regions: tuple[str, ...], possible: bool) -> str | None:
    """A number in its international form, if it is one."""
    groups = re.findall(r"\d+", raw)
    plain = digits(raw)
    plus = raw.lstrip("(")[0] in "+＋"
    if not plus and (_NOT_A_PHONE.match(raw) or (not near and len(groups) == 1)):
        return None
    if plus or digits(groups[0]).startswith("00"):  # zeros that a dot parts are a decimal's
        number = _parse("+" + (plain if plus else plain[2:]), None)
        good = number is not None and (phonenumbers.is_valid_number(number) or (near and possible and _fits(number)))
        return _international(number) if number is not None and good else None
    sizes = tuple(map(len, groups))
    for region in regions:
        is_shaped = near or may_be_usual(region, plain, sizes)
        number = _parse(raw, region) if is_shaped and may_be_valid(region).fullmatch(plain) else None
        if number is not None and phonenumbers.is_valid_number(number) and (near or _is_usual(groups, number)):
            return _international(number)
    if near and possible:
        for region in regions:
            number = _parse(raw, region)
            if number is not None and _fits(number):
                return f"{region} {plain}"
    return None


def _parse(raw: str, region: str | None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(raw, region)
    except NumberParseException:
        return None


def _fits(number: PhoneNumber) -> bool:
    return phonenumbers.is_possible_number(number)


def _is_usual(groups: Sequence[str], number: PhoneNumber) -> bool:
    """Whether digits are grouped as in the number's country, with its code before them or not."""
    found = [digits(group) for group in groups]
    for form in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL):
        usual = re.findall(r"\d+", phonenumbers.format_number(number, form))
        if found in (usual, [str(number.country_code), *usual]) and len(usual) > 1:
            return True
    return False


def _international(number: PhoneNumber) -> str:
    return f"+{number.country_code}{phonenumbers.national_significant_number(number)}"
