"""What the plans of countries say of numbers before they are parsed: which cannot be valid, or are grouped otherwise.

It follows from phonenumbers' own metadata, and never rejects what phonenumbers would not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import product, takewhile

import phonenumbers
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, NumberFormat, PhoneMetadata

Shapes = Mapping[tuple[int, ...], frozenset[str]]
"""Sizes of groups of digits, and patterns that all the digits may have."""

_KINDS = (
    *("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan"),
    "voicemail",
)
_GROUP = re.compile(r"\(((?:[^()]|\(\?:[^()]*\))*)\)")
_UNIT = re.compile(r"(?:\\d|\[[^\]]*\]|\d)(?:\{(\d+)(?:,(\d+))?\}|(\?))?")
_IN_RULE = re.compile(r"\\(\d)|(\d)|\D")
_FIRST_IN_RULE = re.compile(r"\\\d")


@cache
def usual_shapes(region: str) -> Shapes:
    """How numbers that are parsed as a country's are grouped in its usual formats, with its code before them or not.

    A number with the prefix for calls abroad is never so: no format has that prefix.
    """
    if region not in phonenumbers.SUPPORTED_REGIONS:
        return {}
    code = str(phonenumbers.country_code_for_region(region))
    main = _metadata(_regions(code)[0])
    possible = _possible_lengths(code)
    found: dict[tuple[int, ...], set[str]] = {}

    def add(sizes: tuple[int, ...], pattern: str) -> None:
        found.setdefault(sizes, set()).add(pattern)
        found.setdefault((len(code), *sizes), set()).add(code + pattern)

    for numbers in main.number_format:
        for sizes, pattern in _shapes(numbers, numbers.national_prefix_formatting_rule, possible):
            if len(sizes) > 1:
                add(sizes, pattern)
    for numbers in main.intl_number_format or main.number_format:
        for sizes, pattern in _shapes(numbers, None, possible):
            add((len(code), *sizes), code + pattern)
    for length in possible:
        add((len(code), length), rf"{code}\d*")  # of no format
    return {sizes: frozenset(patterns) for sizes, patterns in found.items()}


def may_be_usual(region: str, digits: str, sizes: tuple[int, ...]) -> bool:
    """Whether digits in groups of these sizes are of one of a country's usual shapes."""
    return any(_compiled(pattern).fullmatch(digits) for pattern in usual_shapes(region).get(sizes, ()))


_compiled = cache(re.compile)


def _shapes(
    numbers: NumberFormat, prefix: str | None, possible: Collection[int]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Groups as one format writes them, with what its digits are."""
    rule = numbers.format or ""
    if prefix:
        rule = _FIRST_IN_RULE.sub(lambda group: prefix.replace("\\1", group[0]), rule, count=1)
    groups = [group[1] for group in _GROUP.finditer(numbers.pattern or "")]
    parts = [part[0] for part in _IN_RULE.finditer(rule) if part[1] or part[2]]
    literals = "".join(takewhile(str.isdecimal, parts))
    in_order = parts[len(literals) :] == [f"\\{number}" for number in range(1, len(groups) + 1)]
    begins = numbers.leading_digits_pattern[-1] if in_order and numbers.leading_digits_pattern else ""
    for sizes in product(*map(_sizes, groups)):
        if sum(sizes) in possible:
            written, is_new = list[int](), True
            for part in _IN_RULE.finditer(rule):
                if part[1] is None and part[2] is None:
                    is_new = True
                    continue
                if is_new:
                    written.append(0)
                written[-1] += sizes[int(part[1]) - 1] if part[1] else 1
                is_new = False
            yield tuple(written), rf"{literals}(?:{begins})\d*" if begins else rf"{literals}\d*"


def _possible_lengths(code: str) -> set[int]:
    """How many digits numbers with a country's code have."""
    found = set[int]()
    for region in _regions(code):
        general = _lengths(_metadata(region))
        for kind in filter(None, (getattr(_metadata(region), kind) for kind in _KINDS)):
            found.update(length for length in kind.possible_length or general if length in general)
    return found


def _sizes(group: str) -> range:
    """How many digits a group of a pattern has."""
    least = most = place = 0
    while place < len(group):
        unit = _UNIT.match(group, place)
        if unit is None:
            return range(18)  # none is written so now
        least += 0 if unit[3] else int(unit[1] or 1)
        most += int(unit[2] or unit[1] or 1)
        place = unit.end()
    return range(least, most + 1)


@cache
def may_be_valid(region: str) -> re.Pattern[str]:
    """Digits that may be a valid number where they are dialled in a country."""
    if region not in phonenumbers.SUPPORTED_REGIONS:
        return re.compile("(?!)")
    code = str(phonenumbers.country_code_for_region(region))
    own, main = _metadata(region), _metadata(_regions(code)[0])
    prefixes = {each.national_prefix_for_parsing for each in (own, main)} - {None}
    if any(each.national_prefix_transform_rule for each in (own, main)) or any("$" in str(each) for each in prefixes):
        return re.compile(r"\d*")  # what is written is not what is checked
    kinds = (getattr(_metadata(each), kind) for each in _regions(code) for kind in _KINDS)
    valid = {kind.national_number_pattern for kind in kinds if kind is not None} - {None}
    prefix = f"(?:{'|'.join(map(str, prefixes))}){{0,2}}" if prefixes else ""
    abroad = rf"(?:{own.international_prefix})\d*|" if own.international_prefix else ""
    return re.compile(rf"{abroad}(?:{code})?{prefix}(?:{'|'.join(sorted(map(str, valid)))})")


@cache
def numbers_abroad() -> Mapping[str, int]:
    """Codes of countries, and how many digits numbers have with them at least."""
    return {
        str(code): len(str(code)) + min(min(_lengths(each)) for each in _all_metadata(code))
        for code in COUNTRY_CODE_TO_REGION_CODE
    }


def _all_metadata(code: int) -> Iterator[PhoneMetadata]:
    for region in COUNTRY_CODE_TO_REGION_CODE[code]:
        found = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
        assert found is not None
        yield found


def _regions(code: str) -> tuple[str, ...]:
    """The countries that have a code, first the one whose formats they share."""
    return COUNTRY_CODE_TO_REGION_CODE[int(code)]


def _metadata(region: str) -> PhoneMetadata:
    found = PhoneMetadata.metadata_for_region(region)
    assert found is not None
    return found


def _lengths(metadata: PhoneMetadata) -> tuple[int, ...]:
    """How many digits any number of a country may have."""
    assert metadata.general_desc is not None
    return metadata.general_desc.possible_length
