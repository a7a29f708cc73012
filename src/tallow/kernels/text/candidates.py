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
from tallow.kernels.text.number_forms import NumberForms


class Candidate(IntEnum):
    """What may be there."""

    AT = 0
    """The @ of an e-mail address, or before the host of a URL."""
    PHONE = 1
    """Seven digits or more (ASCII, Arabic, Persian, wide) with at most three separators between two, in which the
    number of a phone may be."""
    IPV4 = 2
    IPV6 = 3
    TOKEN = 4
    """A word of fifteen bytes or more (letters, digits, underscores and hyphens of ASCII) in which, or not far before
    which, a key or the address of a wallet may begin."""
    IBAN = 5
    """The first four characters of an IBAN, for what they are."""
    ASSIGNMENT = 6
    """The colon or equals sign behind the name of a secret."""
    PEM = 7
    """What a PEM block begins with."""
    CARD = 8
    """Such digits, in which those of a payment card may be."""
    ID = 9
    """Such digits, in which those of a national id may be."""


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

BEFORE_TOKEN = 5
"""Characters of a key that may go before its first long word (`ya29.`)."""

_DIGIT = rb"(?:[0-9]|\xd9[\xa0-\xa9]|\xdb[\xb0-\xb9]|\xef\xbc[\x90-\x99])"
_BETWEEN = rb"(?:[ ()./-]|\xc2\xa0|\xe2\x80\x91)"
_DIGITS = re.compile(_DIGIT + rb"(?:" + _BETWEEN + rb"{0,3}" + _DIGIT + rb"){6,}")
_PART = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PATTERNS: Mapping[Candidate, re.Pattern[bytes]] = {
    Candidate.AT: re.compile(rb"(?<=[!-?A-~\x80-\xff])@(?=[A-Za-z0-9\x80-\xff-]{1,63}[.:/][A-Za-z0-9\x80-\xff])"),
    Candidate.PHONE: _DIGITS,
    Candidate.CARD: _DIGITS,
    Candidate.ID: _DIGITS,
    Candidate.IPV4: re.compile(rb"(?<![0-9.])" + _PART + rb"(?:\." + _PART + rb"){3}(?![0-9]|\.[0-9])"),
    Candidate.IPV6: re.compile(rb"[0-9A-Fa-f:]+"),
    Candidate.TOKEN: re.compile(rb"[A-Za-z0-9_-]{15,}"),
    Candidate.IBAN: re.compile(rb"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])"),
    Candidate.ASSIGNMENT: re.compile(rb"[:=]|\xef\xbc\x9a"),
    Candidate.PEM: re.compile(rb"-----BEGIN "),
}


def find_candidates(texts: pa.StringArray, forms: NumberForms | None = None) -> npt.NDArray[np.int32]:
    """Candidates as rows: number of the text, `Candidate`, first character, and that behind the last.

    Rows of a text stand together, texts in their order.

    Args:
        texts: Where to look.
        forms: Of numbers, IPv4 addresses and bank accounts; None: any, and all that a number may be.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        rows = [(number, *row) for number, text in enumerate(texts.to_pylist()) for row in _scan(text or "", forms)]
        return np.array(rows, np.int32).reshape(-1, 4)
    words = b"".join(word + b"\n" for word in SECRET_WORDS)
    found = extension.find_candidates(places(texts), words, None if forms is None else forms.native)
    return np.frombuffer(found, np.int32).reshape(-1, 4)


def _scan(text: str, forms: NumberForms | None) -> Iterator[tuple[Candidate, int, int]]:
    data = text.encode()
    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    characters = np.concatenate(([0], np.cumsum(begins))).tolist()
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(data):
            start, end = characters[match.start()], characters[match.end()]
            if _stands(kind, match) and (forms is None or _has_form(kind, text, start, end, forms)):
                yield kind, start, end


def _has_form(kind: Candidate, text: str, start: int, end: int, forms: NumberForms) -> bool:
    if kind == Candidate.PHONE:
        return forms.may_be_phone(text, start, end)
    if kind == Candidate.CARD:
        return forms.may_be_card(text, start, end)
    if kind == Candidate.ID:
        return forms.may_be_id(text, start, end)
    if kind == Candidate.IBAN:
        return forms.may_be_account(text, start)
    if kind == Candidate.IPV4:
        return forms.own_addresses or _NOBODYS.match(text, start) is None
    return True


def _stands(kind: Candidate, match: re.Match[bytes]) -> bool:
    data, start, end = match.string, match.start(), match.end()
    if kind == Candidate.TOKEN:
        return _SECRET.search(data, max(0, start - BEFORE_TOKEN), end) is not None
    if kind == Candidate.ASSIGNMENT:
        name = _BEHIND_NAME.sub(b"", data[max(0, start - 40) : start])
        return name.translate(_LOWER).endswith(SECRET_WORDS)
    if kind == Candidate.IPV6:
        run = match[0]
        joined = _JOINED.match(data[start - 1 : start]) or _JOINED.match(data[end : end + 1])
        return 6 <= len(run) <= 45 and (b"::" in run or run.count(b":") >= 6) and not joined
    return True


_SECRET = re.compile(
    rb"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|sk-|xox[a-z]-|xapp-|AIza|ya29\.|[rs]k_(?:live|test)_|npm_|hf_|pypi-"
    rb"|SG\.|eyJ|(?:A[A-Z]{3}[A-Za-z0-9]{16}|[123LMDTX][1-9A-HJ-NP-Za-km-z]{25,34}|0x[A-Za-z0-9]{40})(?![A-Za-z0-9])"
    rb"|(?=bc1|tb1|ltc1|BC1|TB1|LTC1)[A-Za-z0-9]{11})"
)
_NOBODYS = re.compile(r"(?:0|10|127|169\.254|192\.168|172\.(?:1[6-9]|2\d|3[01])|22[4-9]|2[3-5]\d)\.")
"""What IPv4 addresses begin with that mean something only in a network of one's own, or are no machine's."""
_BEHIND_NAME = re.compile(rb"""["']?[ ]{0,2}\Z""")
_JOINED = re.compile(rb"[0-9A-Za-z_]")
_LOWER = bytes(byte | 0x20 if ord("A") <= byte <= ord("Z") else byte for byte in range(256))
