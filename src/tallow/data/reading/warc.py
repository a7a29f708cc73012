"""WARC: a document is a record that answers a request with HTML or plain text.

`response` records with status 200, `resource` records, and `conversion` records (those of WET files) are read; others
are left out, and counted. `warc_frames` finds the records, fastwarc reads each.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from tallow.data.reading.encodings import count, decide, decode
from tallow.data.reading.html import extract
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, extra
from tallow.data.reading.warc_frames import Frame, members, packed_by_record, record_size, records
from tallow.data.records import Place, Rejected

HTML = ("text/html", "application/xhtml+xml")
PLAIN = "text/plain"
READ = ("response", "resource", "conversion")
LEFT_OUT = ("warcinfo", "request", "metadata", "revisit", "continuation")
MAX_URL = 2000


def frames(piece: Piece, limit: int, keep: bool = True) -> Iterator[Frame]:
    """The records that begin in a piece, good and bad."""
    source = piece.source
    if packed_by_record(source):
        with source.reading_errors(), open(source.path, "rb") as file:
            yield from _within(piece, members(file, piece.begin, limit, keep))
    else:
        with source.open() as stream:
            yield from _within(piece, records(stream, piece.begin, limit if keep else 0, not source.packed))


def read_warc(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    """The documents of a file; their offsets are where their records begin.

    Metadata: `url`, `date`, `title`.
    """
    reader: Any = extra("fastwarc.warc", "WARC")
    nothing = True
    for frame in frames(piece, settings.max_document_bytes):
        nothing = False
        try:
            if frame.reason:
                raise Unusable(frame.reason)
            found = _document(reader, frame, settings, rejected)
        except Unusable as reason:
            rejected.add(Place(piece.source, "byte", None, frame.offset), str(reason), frame.raw, reason.hint)
        else:
            if found:
                yield found
    if nothing and piece == Piece(piece.source):
        raise empty()


def _within(piece: Piece, found: Iterator[Frame]) -> Iterator[Frame]:
    for frame in found:
        if not piece.holds(frame.offset):
            return
        yield frame


def _document(reader: Any, frame: Frame, settings: ReadSettings, rejected: Rejected) -> Text | None:
    if not _fits(frame.raw):
        raise Unusable("cut short, or longer or shorter than its header says")
    try:
        record = next(reader.ArchiveIterator(io.BytesIO(frame.raw), parse_http=True, auto_decode="all"))
        kind = (record.headers.get("WARC-Type") or "").lower()
        if kind not in READ:
            rejected.note(f"WARC record left out: {kind if kind in LEFT_OUT else 'of another type'}")
            return None
        if kind == "response":
            headers = record.http_headers
            if headers is None or headers.status_code is None:
                raise Unusable("not an answer of HTTP")
            if headers.status_code != 200:
                rejected.note("WARC record left out: status is not 200")
                return None
            media, charset = record.http_content_type, record.http_charset or ""
        else:
            media, _, _ = (record.headers.get("Content-Type") or "").partition(";")
            charset = ""
        media = (media or "").strip().lower()
        if media not in (*HTML, PLAIN):
            rejected.note("WARC record left out: neither HTML nor plain text")
            return None
        metadata = {
            name: value[:MAX_URL]
            for name, key in (("url", "WARC-Target-URI"), ("date", "WARC-Date"))
            if (value := record.headers.get(key))
        }
        raw = record.reader.read(settings.max_document_bytes + 1)
    except (OSError, ValueError, EOFError, StopIteration) as error:
        raise Unusable(f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
    if len(raw) > settings.max_document_bytes:
        raise Unusable(settings.too_long)
    if media in HTML:
        text, more = extract(raw, settings, rejected, charset)
        metadata |= more
    else:
        encoding = decide(raw, settings, declared=charset)
        text = decode(raw, encoding).strip()
        count(encoding, settings, rejected)
    if not text:
        rejected.note("WARC record left out: no text on the page")
        return None
    return Text(text, frame.offset, metadata)


def _fits(raw: bytes) -> bool:
    size = record_size(raw)
    return size is not None and size <= len(raw) and not raw[size:].strip(b"\r\n")
