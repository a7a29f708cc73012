"""In which encoding a text is: its byte-order mark, UTF-8, what it declares, or what its bytes look like.

Nothing is repaired: bytes that are no text in the encoding that was decided on are set aside.
"""

from __future__ import annotations

import codecs

from tallow.data.reading.settings import AUTO, ReadSettings, Unusable, binary, extra
from tallow.data.records import Rejected
from tallow.data.sources import Source

SAMPLE_BYTES = 2**16
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WIDE = ("utf-16", "utf-32")
SEVEN_BIT = ("iso-2022", "iso2022", "hz")
"""What is written in these is also ASCII, so that only a declaration tells them."""
UNFIT = frozenset({"utf-7", "idna", "punycode", "unicode-escape", "raw-unicode-escape"})
"""No browser reads them: they give halves of surrogate pairs, or take time quadratic in the text."""
MIN_CONFIDENCE = 0.1
"""Below it are guesses from a few characters (docs/decisions.md)."""
BOM = "\ufeff"


def decide(raw: bytes, settings: ReadSettings, whole: bool = True, declared: str = "") -> str:
    """The encoding of a text.

    Args:
        raw: The text, or its beginning.
        settings: `encoding` may name it.
        whole: Whether it is all of it; a beginning may end within a character.
        declared: What the text says of itself, or what came with it says of it: any string.

    Raises:
        Unusable: The bytes are no text, or it cannot be told which.
        UsageError: A package is needed to tell, and not installed.
    """
    if settings.encoding != AUTO:
        if b"\0" in raw and not settings.encoding.lower().startswith(WIDE) and not raw.startswith(tuple(MARKS)):
            raise binary()
        return settings.encoding
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            return name
    if b"\0" in raw:
        raise binary()
    stated = _text_encoding(declared)
    if stated.startswith(SEVEN_BIT) and _decodes(raw, stated, whole):
        return stated
    if _decodes(raw, "utf-8", whole):
        return "utf-8"
    if stated and _decodes(raw, stated, whole):
        return stated
    found = extra("chardet", "text that is not UTF-8").detect(raw[:SAMPLE_BYTES])
    name = _text_encoding(found["encoding"] or "")
    if name and found["confidence"] >= MIN_CONFIDENCE and _decodes(raw, name, whole):
        return name
    raise Unusable("is not UTF-8 text, nor in an encoding that can be told", "set encoding to what it is in")


def decide_for_lines(source: Source, settings: ReadSettings) -> str:
    """The encoding of a file that is read in lines: by its first 64 KiB, the same for every piece of it."""
    if settings.encoding != AUTO:
        return settings.encoding
    with source.open() as stream:
        sample = stream.read(SAMPLE_BYTES)
    encoding = decide(sample, settings, whole=len(sample) < SAMPLE_BYTES)
    if encoding in WIDE:
        raise Unusable(f"is {encoding} text, which has no lines of bytes", "convert it to UTF-8 (iconv does)")
    return encoding


def has_encoding(source: Source, settings: ReadSettings) -> bool:
    """Whether that can be told."""
    try:
        decide_for_lines(source, settings)
    except Unusable:
        return False
    return True


def decode(raw: bytes, encoding: str, offset: int = 0) -> str:
    """Text with plain newlines and no byte-order mark; empty if there is only white space.

    Raises:
        Unusable: The bytes are not text in this encoding.
    """
    try:
        text = raw.decode(encoding)
        if encoding != "utf-8":
            text.encode()  # UTF-7 and escapes may hold halves of surrogate pairs, which are no characters
    except UnicodeError as error:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = "set encoding to utf-16"
        else:
            hint = "set encoding to what it is in (e.g. latin-1, cp1252), or convert it to UTF-8"
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise Unusable(f"is not {encoding} text (byte {offset + start:,})", hint) from error
    if "\0" in text:
        raise binary()
    text = text.removeprefix(BOM).replace("\r\n", "\n")
    return text if text.strip() else ""


def count(encoding: str, settings: ReadSettings, rejected: Rejected) -> None:
    """Note what was decided on, where it was not what everybody expects."""
    if settings.encoding == AUTO and encoding != "utf-8":
        rejected.note(f"read as {encoding}")


def _text_encoding(name: str) -> str:
    """Python's name of an encoding that a text may be in; empty for others, such as `zip`, which would unpack it."""
    try:
        known = codecs.lookup(name).name
        "".encode(known)
    except (LookupError, ValueError):  # such as a NUL in the name
        return ""
    return known if known.replace("_", "-") not in UNFIT else ""


def _decodes(raw: bytes, encoding: str, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(raw, whole)
    except UnicodeError:
        return False
    return True
