"""Where in texts something private may be: an e-mail's @, a run of digits, a long word, the name of a password.

What is found is a superset: others look at it exactly. So the cost of a search is that of one scan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places


class Candidate(IntEnum):
    """What may be there."""

    AT = 0
    """The @ of an e-mail address, or before the host of a URL."""
    NUMBER = 1
    """Seven digits or more (ASCII, Arabic, Persian, wide) with at most three separators between two."""
    IPV4 = 2
    IPV6 = 3
    TOKEN = 4
    """A word of fifteen bytes or more: letters, digits, underscores and hyphens of ASCII."""
    IBAN = 5
    """The first four characters of an IBAN, for what they are."""
    ASSIGNMENT = 6
    """The colon or equals sign behind the name of a secret."""
    PEM = 7
    """What a PEM block begins with."""


SECRET_WORDS = tuple(
    word.encode()
    for word in (
        *("password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "credentials"),
        *("api_key", "api-key", "apikey", "api key", "access_key", "access-key", "accesskey", "access key"),
        *("secret_key", "secret-key", "secretkey", "auth_key", "private_key", "account_key", "accountkey"),
        *("пароль", "Пароль", "密码", "密碼", "口令", "令牌", "رمز عبور", "گذرواژه", "کلمه عبور"),
        *("passwort", "kennwort", "mot de passe", "contraseña"),
    )
)
"""Names of secrets end in these, in any case of ASCII letters."""

_DIGIT = rb"(?:[0-9]|\xd9[\xa0-\xa9]|\xdb[\xb0-\xb9]|\xef\xbc[\x90-\x99])"
_BETWEEN = rb"(?:[ ()./-]|\xc2\xa0|\xe2\x80\x91)"
_PATTERNS: Mapping[Candidate, re.Pattern[bytes]] = {
    Candidate.AT: re.compile(rb"(?<=[!-?A-~\x80-\xff])@(?=[A-Za-z0-9\x80-\xff-]{1,63}[.:/][A-Za-z0-9\x80-\xff])"),
    Candidate.NUMBER: re.compile(_DIGIT + rb"(?:" + _BETWEEN + rb"{0,3}" + _DIGIT + rb"){6,}"),
    Candidate.IPV4: re.compile(rb"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9]|\.[0-9])"),
    Candidate.IPV6: re.compile(rb"[0-9A-Fa-f:]+"),
    Candidate.TOKEN: re.compile(rb"[A-Za-z0-9_-]{15,}"),
    Candidate.IBAN: re.compile(rb"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])"),
    Candidate.ASSIGNMENT: re.compile(rb"[:=]|\xef\xbc\x9a"),
    Candidate.PEM: re.compile(rb"-----BEGIN "),
}


def find_candidates(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Candidates as rows: number of the text, `Candidate`, first character, and that behind the last.

    Rows of a text stand together, texts in their order.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        rows = [(number, *row) for number, text in enumerate(texts.to_pylist()) for row in _scan((text or "").encode())]
        return np.array(rows, np.int32).reshape(-1, 4)
    found = extension.find_candidates(places(texts), b"".join(word + b"\n" for word in SECRET_WORDS))
    return np.frombuffer(found, np.int32).reshape(-1, 4)


def _scan(data: bytes) -> Iterator[tuple[Candidate, int, int]]:
    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    characters = np.concatenate(([0], np.cumsum(begins)))
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(data):
            if _stands(kind, match):
                yield kind, characters[match.start()], characters[match.end()]


def _stands(kind: Candidate, match: re.Match[bytes]) -> bool:
    data, start, end = match.string, match.start(), match.end()
    if kind == Candidate.ASSIGNMENT:
        name = _BEHIND_NAME.sub(b"", data[max(0, start - 40) : start])
        return name.translate(_LOWER).endswith(SECRET_WORDS)
    if kind == Candidate.IPV6:
        run = match[0]
        joined = _JOINED.match(data[start - 1 : start]) or _JOINED.match(data[end : end + 1])
        return 6 <= len(run) <= 45 and (b"::" in run or run.count(b":") >= 6) and not joined
    return True


_BEHIND_NAME = re.compile(rb"""["']?[ ]{0,2}\Z""")
_JOINED = re.compile(rb"[0-9A-Za-z_]")
_LOWER = bytes(byte | 0x20 if ord("A") <= byte <= ord("Z") else byte for byte in range(256))
