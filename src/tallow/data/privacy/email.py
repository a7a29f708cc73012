"""E-mail addresses around an @ (RFC 5321 with its limits, and letters of Latin, Greek and Cyrillic: RFC 6531)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tallow.data.privacy.span import Span

_LETTER = r"[^\W_\u0590-\U0010ffff]"
_NAME_REVERSED = re.compile(rf"(?:{_LETTER}|[_.%+'-]){{1,64}}")
_DOMAIN = re.compile(
    rf"(?:{_LETTER}(?:(?:{_LETTER}|-){{0,61}}{_LETTER})?\.){{1,8}}"
    rf"(?:xn--[A-Za-z0-9-]{{2,59}}|[^\W\d_\u0590-\U0010ffff]{{2,24}})(?!{_LETTER}|_)"
)
_FILES = ("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "html", "php", "pdf")
"""What names of files such as icon@2x.png end in; none is a domain."""


def find(text: str, at: int) -> Iterator[Span]:
    """The address whose @ is at a place."""
    name = _NAME_REVERSED.match(text[max(0, at - 64) : at][::-1])
    domain = _DOMAIN.match(text, at + 1)
    if name is None or domain is None:
        return
    local = name[0][::-1].lstrip("'.-%+")
    if local and not local.endswith((".", "'")) and ".." not in local and domain[0].rpartition(".")[2] not in _FILES:
        yield Span(at - len(local), domain.end(), "email", f"{local}@{domain[0]}".lower())
