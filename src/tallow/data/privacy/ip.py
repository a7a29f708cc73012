"""IPv4 and IPv6 addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from tallow.data.privacy.span import Span, is_near, whole_words

_NUMBERED = whole_words(
    r"(?:<v|version|release|<gcc|section|chapter|<see|abschnitt|kapitel|capítulo|sección|chapitre|§|верси\w*|раздел\w*|глав\w*"
    r"|نسخه|بخش|فصل|قسمت|版本|第)[ .:]{0,2}\Z|[^\W\d][/-]\Z|==\Z"
)
"""What goes before a version or the number of a section."""
_BEGIN = re.compile(r"(?:^|\n)[ \t#*]*\Z")
_HEADING = re.compile(r"\.[ \xa0]|[ \xa0](?=[^\W\d_])(?![a-zа-яё])")
_JOINED = re.compile(r"[^\W\u0590-\U0010ffff]")
_TAIL = re.compile(r"(?:\.[0-9]{1,3}){3}(?![0-9]|\.[0-9])")


def find(text: str, start: int, end: int, private: bool) -> Iterator[Span]:
    """The address at a place.

    Args:
        private: Whether addresses that are nobody's on the internet count.
    """
    tail = _TAIL.match(text, end) if ":" in text[start:end] else None  # an IPv4 address within an IPv6 one
    end = tail.end() if tail else end
    if end < len(text) and _JOINED.match(text[end]):
        return
    if start and (_JOINED.match(text[start - 1]) or is_near(_NUMBERED, text, start, end, before=20)):
        return
    while text[start] == ":" and not text.startswith("::", start):  # what goes before an address: "address:fe80::1"
        start += 1
    if text[end - 1] == ":" and not text.endswith("::", start, end):
        end -= 1
    if _is_heading(text, start, end):
        return
    value = _value(text[start:end], private)
    if value is not None:
        yield Span(start, end, "ip", value)


@lru_cache(4096)
def _value(written: str, private: bool) -> str | None:
    """An address in its usual form, if it is one that counts."""
    try:
        address = ip_address(written)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and "::" in written and written.find(":") < 3:
        return None  # `a::b` of a program; addresses that are given out begin with three digits or four
    mine = address.is_private or address.is_loopback or address.is_link_local
    counts = not (mine or address.is_multicast or address.is_unspecified) or (mine and private)
    return address.compressed if counts else None


def _is_heading(text: str, start: int, end: int) -> bool:
    """Whether it begins a line as the number of a section does: small numbers, and a title behind them."""
    small = all(len(part) < 3 for part in text[start:end].split("."))
    return (
        small and _BEGIN.search(text[max(0, start - 8) : start]) is not None and _HEADING.match(text, end) is not None
    )
