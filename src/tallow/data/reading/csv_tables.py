"""CSV and TSV: the first record names the columns.

A field may be quoted by `"`, and then hold newlines and doubled quotes (RFC 4180). The delimiter of CSV is that which
cuts the first records into equally many fields; one whose header has the column that is wanted comes first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from tallow.data.reading.encodings import count, decide_for_lines, decode
from tallow.data.reading.lines import lines
from tallow.data.reading.settings import Piece, ReadSettings, Unusable, empty, refuse_wide
from tallow.data.records import Place, Record, Rejected
from tallow.data.sources import Source
from tallow.errors import DataError

DELIMITERS = ",;\t|"
SAMPLE_RECORDS = 20


class _Framed(NamedTuple):
    """The lines of one record."""

    number: int
    offset: int
    raw: bytes
    lines: int


def read_csv(piece: Piece, settings: ReadSettings, rejected: Rejected, column: str | None) -> Iterator[Record]:
    """The records of a table after its header; their offsets are those of their first bytes.

    Args:
        piece: The whole file.
        settings: How to read.
        rejected: Counts what is set aside.
        column: The one that must be there; None: any.

    Raises:
        DataError: There is no such column.
    """
    source = piece.source
    encoding = decide_for_lines(source, settings)
    refuse_wide(source, encoding)
    count(encoding, settings, rejected)
    # of all of csv in this process; never lowered, so that nobody's fields become too long
    csv.field_size_limit(max(csv.field_size_limit(), settings.max_document_bytes + 1))
    delimiter = _delimiter(source, settings, encoding, column)
    header: list[str] | None = None
    for framed in _frame(source, settings):
        place = Place(source, "line", framed.number, framed.offset)
        try:
            if len(framed.raw) > settings.max_document_bytes:
                raise Unusable(settings.too_long + _span(framed))
            fields = _fields(decode(framed.raw, encoding, framed.offset), delimiter)
            if header is None:
                header = _header(fields, column, source)
                continue
            if len(fields) != len(header):
                raise Unusable(f"{len(fields)} fields where the header has {len(header)}{_span(framed)}")
        except Unusable as reason:
            if header is None:
                raise
            rejected.add(place, str(reason), framed.raw, reason.hint)
        else:
            yield Record(place, dict(zip(header, fields, strict=True)))
    if header is None:
        raise empty()


def _frame(source: Source, settings: ReadSettings) -> Iterator[_Framed]:
    """Lines joined while a quote is open; one that is never closed takes what `max_document_bytes` holds."""
    limit = settings.max_document_bytes
    kept = bytearray()
    number = offset = count = quotes = 0
    with source.open() as stream:
        for line in lines(stream, Piece(source), limit, keep_blank=True):
            if count:
                kept += b"\n"
            elif line.blank:
                continue
            else:
                assert line.number is not None
                number, offset = line.number, line.offset
            kept += line.raw
            count += line.lines
            quotes += line.raw.count(b'"')
            if quotes % 2 == 0 or len(kept) >= limit:
                yield _Framed(number, offset, bytes(kept), count)
                kept.clear()
                count = quotes = 0
        if count:
            yield _Framed(number, offset, bytes(kept), count)


def _fields(text: str, delimiter: str) -> list[str]:
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise Unusable(f"not CSV ({error})") from None
    if len(records) != 1:
        raise Unusable("not CSV (a carriage return outside quotes)")
    return records[0]


def _delimiter(source: Source, settings: ReadSettings, encoding: str, column: str | None) -> str:
    if source.kind == "tsv":
        return "\t"
    sample = []
    for framed in islice(_frame(source, settings), SAMPLE_RECORDS):
        if len(framed.raw) <= settings.max_document_bytes:
            with suppress(Unusable):  # which is told when it is read
                sample.append(decode(framed.raw, encoding, framed.offset))
    return max(DELIMITERS, key=lambda delimiter: _fitness(sample, delimiter, column))


def _fitness(sample: Sequence[str], delimiter: str, column: str | None) -> tuple[bool, int, int]:
    widths = []
    header: list[str] = []
    for text in sample:
        try:
            fields = _fields(text, delimiter)
        except Unusable:
            continue
        header = header or fields
        widths.append(len(fields))
    agreeing = widths.count(len(header)) if len(header) > 1 else 0
    return column in header, agreeing, len(header)


def _header(fields: list[str], column: str | None, source: Source) -> list[str]:
    if column is not None and column not in fields:
        raise DataError(
            f"data file {source.path} has no column {column}", f"set text_field; it has: {', '.join(fields)[:200]}"
        )
    if len(set(fields)) < len(fields):
        raise Unusable("names a column twice in its first line")
    return fields


def _span(framed: _Framed) -> str:
    return f", over {framed.lines:,} lines (a quote that is not closed?)" if framed.lines > 1 else ""
