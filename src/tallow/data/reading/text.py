"""Text and Markdown: whole files, paragraphs or lines.

Front matter of Markdown (YAML between two lines of `---` that begin the file) is no text: it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from tallow.data.reading.encodings import count, decide, decide_for_lines, decode
from tallow.data.reading.lines import lines, paragraphs
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, refuse_wide
from tallow.data.records import Place, Rejected

FRONT_MATTER_BYTES = 2**16
FRONT_MATTER = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(?:[^\n]*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")


def read_text(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    """The documents of a text or Markdown file; their offsets are those of their first bytes."""
    source = piece.source
    begin = 0
    if source.kind == "markdown":
        with source.open() as stream:
            begin = _front_matter(stream)
    if settings.split == "whole":
        with source.open() as stream:
            yield _whole(stream, begin, settings, rejected)
        return
    encoding = decide_for_lines(source, settings)
    refuse_wide(source, encoding)
    if piece.begin == 0:
        count(encoding, settings, rejected)
    framing = lines if settings.split == "lines" else paragraphs
    nothing = True
    with source.open() as stream:
        for line in framing(stream, piece, settings.max_document_bytes, begin):
            if line.blank:
                continue
            nothing = False
            place = Place(source, "line", line.number, line.offset)
            if len(line.raw) > settings.max_document_bytes:
                rejected.add(place, settings.too_long, line.raw)
                continue
            try:
                text = decode(line.raw, encoding, line.offset)
            except Unusable as reason:
                rejected.add(place, str(reason), line.raw, reason.hint)
            else:
                if text:
                    yield Text(text, line.offset)
    if nothing and piece == Piece(source):
        raise empty()


def _whole(stream: IO[bytes], begin: int, settings: ReadSettings, rejected: Rejected) -> Text:
    raw = stream.read(settings.max_document_bytes + 1)
    if len(raw) > settings.max_document_bytes:
        raise Unusable(
            f"is longer than {settings.max_document_bytes:,} bytes, too long for one document",
            "set split to paragraphs or lines, or raise max_document_bytes",
        )
    encoding = decide(raw, settings)
    text = decode(raw[begin:], encoding, begin)
    if not text:
        raise empty()
    count(encoding, settings, rejected)
    return Text(text, begin)


def _front_matter(stream: IO[bytes]) -> int:
    """Where the text begins after it."""
    found = FRONT_MATTER.match(stream.read(FRONT_MATTER_BYTES))
    return found.end() if found else 0
