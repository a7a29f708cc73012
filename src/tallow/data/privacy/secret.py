"""Keys and tokens by their form, private keys, passwords in URLs, and what looks random behind the name of a secret."""

from __future__ import annotations

import binascii
import json
import math
import re
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterator

from tallow.data.privacy.span import Span

LONGEST_PEM = 20_000
BEFORE_TOKEN = 5
"""Characters of a key that may go before its first long word (`ya29.`)."""

_PREFIX = re.compile(
    r"(?<![A-Za-z0-9])(?:A[A-Z]{3}|gh[pousr]_|github_pat_|glpat-|sk-|xox[a-z]-|xapp-|AIza|ya29\.|[rs]k_(?:live|test)_|npm_"
    r"|hf_|pypi-|SG\.|eyJ)"
)
_KEY = re.compile(
    r"(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|AROA)[A-Z2-7]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|sk-(?P<mixed>[A-Za-z0-9_-]{20,256})|hf_[A-Za-z0-9]{34}"
    r"|xox[abceoprs]-[0-9][A-Za-z0-9-]{9,250}|xapp-[0-9]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,512}"  # Google
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,512}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"
    r"|(?<![A-Za-z0-9_-])(?P<jwt>eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{2,16384}\.[A-Za-z0-9_-]{0,4096})"  # RFC 7519
    r")(?![A-Za-z0-9])"
)
_PEM = re.compile(r"-----BEGIN ((?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?)-----")
_VALUE = re.compile(
    r"""[ \t]{0,3}(?:(?:Bearer|Basic)[ ])?"""
    r"""(?:"([^"\n<>]{8,256})"|'([^'\n<>]{8,256})'|([^\s"'`<>,;&=，。；]{8,256}={0,2}))"""
)
_REST = re.compile(r"""[^\s"'`<>,;&，。；]*""")
_OF_A_PROGRAM = re.compile(r"[$%{(/\[.*]|https?:|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:[\[(]|\Z)|[A-Za-z_]\w*[\[(]")
_DIGIT = re.compile(r"\d")
_USER = re.compile(r"[^\s/:@<>]{0,128}:([^\s/@<>]{1,128})\Z")


def find_key(text: str, start: int, end: int) -> Iterator[Span]:
    """Keys that begin within a word."""
    place = max(0, start - BEFORE_TOKEN)
    while (prefix := _PREFIX.search(text, place, end)) is not None:
        key = _KEY.match(text, prefix.start())
        place = key.end() if key else prefix.end()
        if key is None or (key["mixed"] and not _is_random(key["mixed"])) or (key["jwt"] and not is_jwt(key["jwt"])):
            continue
        yield Span(key.start(), key.end(), "secret", key[0])


def find_value(text: str, end: int) -> Iterator[Span]:
    """What looks random behind the name of a secret, whose colon or equals sign ends at a place."""
    match = _VALUE.match(text, end)
    if match is None:
        return
    value = match[match.lastindex or 0]
    if " " in value or _OF_A_PROGRAM.match(value) or not is_password(value):
        return
    start = match.start(match.lastindex or 0)
    if match[3]:
        rest = _REST.match(text, match.end())
        value = (value + rest[0] if rest else value).rstrip(".!?)")
    yield Span(start, start + len(value), "secret", value)


def find_pem(text: str, start: int) -> Iterator[Span]:
    """The private key whose block begins at a place, if the block ends."""
    begin = _PEM.match(text, start)
    if begin is None:
        return
    ending = f"-----END {begin[1]}-----"
    end = text.find(ending, begin.end(), begin.end() + LONGEST_PEM)
    if end >= 0:
        yield Span(start, end + len(ending), "secret", text[start:end])


def find_in_url(text: str, at: int) -> Iterator[Span]:
    """The password of a URL, before its @."""
    window = text[max(0, at - 260) : at]
    _, separator, behind = window.rpartition("://")
    match = _USER.match(behind) if separator else None
    if match is not None:
        yield Span(at - len(match[1]), at, "secret", match[1])


def is_password(value: str) -> bool:
    """Whether it has letters and digits, and more than two kinds of characters or sixteen characters, well mixed."""
    if _DIGIT.search(value) is None:
        return False
    kinds = [any(map(test, value)) for test in (str.islower, str.isupper)]
    enough = sum([*kinds, not value.isalnum()]) > 1 or len(value) >= 16
    return any(kinds) and enough and entropy(value) >= 2.5


def _is_random(value: str) -> bool:
    """Whether it has letters and digits, as many kinds of them as what is drawn by chance has."""
    return any(map(str.isdecimal, value)) and any(map(str.isalpha, value)) and entropy(value) >= 3


def is_jwt(token: str) -> bool:
    """Whether its header is a JSON object that names an algorithm."""
    header = token.partition(".")[0]
    try:
        value = json.loads(urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return False
    return isinstance(value, dict) and "alg" in value


def entropy(value: str) -> float:
    """Bits a character, by how often each is there."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
