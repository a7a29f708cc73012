"""Raw files to records and documents, streamed, with bad lines set aside rather than fatal."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow.parquet as pq
from pydantic import Field, field_validator

from tallow.data.records import REJECTED_BYTES, Place, Record, Rejected
from tallow.data.sources import Source, find_sources
from tallow.errors import DataError, UsageError
from tallow.recipe import Section

ID_LENGTH = 32
PARQUET_ROWS = 256
BINARY_PROBE_BYTES = ARRAY_PROBE_BYTES = 8192
SHOWN_NAMES = 80
BOM = "\ufeff"


class ReadSettings(Section):
    """How raw files are read.

    Args:
        text_field: The field (JSON) or column (parquet) that holds a document's text.
        split: What a document is in a text file: the whole file, each paragraph (blank lines between), or each line.
        encoding: Encoding of text and JSON files; a byte-order mark is dropped.
        max_document_bytes: A longer line, paragraph or row is set aside; a longer whole text file is an error.
        max_bad_fraction: Above this share of records set aside, reading fails.
    """

    text_field: str = "text"
    split: Literal["whole", "paragraphs", "lines"] = "whole"
    encoding: str = "utf-8"
    max_document_bytes: int = Field(default=64 * 2**20, gt=0)
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            "\n".encode(name)
        except LookupError as error:
            raise ValueError(f"{name} is not a text encoding; e.g. utf-8, latin-1, cp1252, utf-16") from error
        return name


@dataclass(frozen=True)
class Document:
    """A text and where it came from.

    Args:
        id: Hash of source, offset and content: 32 hexadecimal digits.
        text: The text, as it stood there.
        source: Name of the source.
        offset: As of its `Place`.
        digest: SHA-256 of the text in UTF-8.
    """

    id: str
    text: str
    source: str
    offset: int
    digest: bytes

    @classmethod
    def make(cls, text: str, source: str, offset: int) -> Document:
        digest = sha256(text.encode()).digest()
        identity = json.dumps([source, offset, digest.hex()]).encode()
        return cls(sha256(identity).hexdigest()[:ID_LENGTH], text, source, offset, digest)


class _Unusable(Exception):
    """A record that is set aside; says why."""


def read_records(
    sources: str | Path | Iterable[str | Path],
    settings: ReadSettings | None = None,
    rejected: Rejected | None = None,
) -> Iterator[Record]:
    """Stream the objects of JSON files, or the rows of parquet files.

    A file named `.jsonl` has an object on each line. One named `.json` may have that too, or be one array of
    objects, which is held in memory as a whole.

    Args:
        sources: What `find_sources` takes.
        settings: How to read; `text_field` and `split` do not matter here.
        rejected: Counts what is set aside.

    Raises:
        DataError: A file is missing, empty, damaged or of another kind, or too many records are bad.
    """
    settings, rejected = settings or ReadSettings(), rejected or Rejected()
    for source in find_sources([sources] if isinstance(sources, str | Path) else sources):
        if source.kind == "text":
            raise DataError(f"{source.path} is a text file where records are needed", "give JSON or parquet")
        for record in _records(source, settings, rejected, columns=None):
            rejected.good += 1
            yield record
    rejected.check(settings.max_bad_fraction)


def read_documents(sources: Iterable[Source], settings: ReadSettings, rejected: Rejected) -> Iterator[Document]:
    """Stream the documents of text, JSON (as `read_records` does) and parquet files.

    Raises:
        DataError: A file is missing, empty, binary, damaged or wrongly encoded, or too many records are bad.
        UsageError: A text file in this encoding cannot be split.
    """
    for source in sources:
        pieces = _text_pieces if source.kind == "text" else _text_fields
        for text, offset in pieces(source, settings, rejected):
            rejected.good += 1
            yield Document.make(text, source.name, offset)
    rejected.check(settings.max_bad_fraction)


def _text_fields(source: Source, settings: ReadSettings, rejected: Rejected) -> Iterator[tuple[str, int]]:
    field = settings.text_field
    for record in _records(source, settings, rejected, columns=[field]):
        text = record.fields.get(field)
        if not isinstance(text, str):
            present = f"field {field} is not a string"
            absent = f"no field {field}, but {', '.join(record.fields)[:SHOWN_NAMES] or 'nothing'}"
            raw = json.dumps(record.fields, default=str).encode()
            rejected.add(record.place, present if field in record.fields else absent, raw)
        elif record.place.unit != "line" and len(text.encode()) > settings.max_document_bytes:
            rejected.add(record.place, _too_long(settings), text[:REJECTED_BYTES].encode())
        else:
            yield text, record.place.offset


def _records(source: Source, settings: ReadSettings, rejected: Rejected, columns: list[str] | None) -> Iterator[Record]:
    if source.kind == "parquet":
        yield from _rows(source, columns)
        return
    _refuse_wide_encoding(source, settings)
    if source.kind == "json" and _begins_as_array(source):
        yield from _elements(source, settings, rejected)
    else:
        yield from _json_lines(source, settings, rejected)


def _json_lines(source: Source, settings: ReadSettings, rejected: Rejected) -> Iterator[Record]:
    empty = True
    with source.open() as stream:
        for number, offset, raw in _lines(stream, settings.max_document_bytes):
            if number == 1 and b"\0" in raw[:BINARY_PROBE_BYTES]:
                raise _binary(source)
            if not raw.strip():
                continue
            place = Place(source, "line", number, offset)
            try:
                record = Record(place, _parse(raw, settings))
            except _Unusable as reason:
                if empty and source.kind == "json":  # such as one object over many lines
                    raise DataError(
                        f"data file {source.path} is neither a JSON array nor JSON lines (line {number}: {reason})",
                        "make it an array of objects, or write one object on each line; "
                        f"records in a field come out by: jq -c '.FIELD[]' {source.path} > records.jsonl",
                    ) from None
                rejected.add(place, str(reason), raw)
            else:
                yield record
            empty = False
    if empty:
        raise _empty(source)


def _begins_as_array(source: Source) -> bool:
    with source.open() as stream:
        return stream.read(ARRAY_PROBE_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _elements(source: Source, settings: ReadSettings, rejected: Rejected) -> Iterator[Record]:
    with source.open() as stream:
        text = _decode(source, 0, stream.read(), settings.encoding)
    try:
        elements = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"data file {source.path} begins as a JSON array, but is not valid JSON ({error})",
            "fetch or make it again",
        ) from error
    if not elements:
        raise _empty(source)
    for index, element in enumerate(elements):
        place = Place(source, "record", index + 1, index)
        try:
            record = Record(place, _object(element))
        except _Unusable as reason:
            rejected.add(place, str(reason), json.dumps(element).encode())
        else:
            yield record


def _rows(source: Source, columns: list[str] | None) -> Iterator[Record]:
    row = 0
    with source.reading_errors(), open(source.path, "rb") as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if missing := [column for column in columns or () if column not in names]:
            raise DataError(
                f"data file {source.path} has no column {missing[0]}", f"set text_field; it has: {', '.join(names)}"
            )
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for fields in batch.to_pylist():
                yield Record(Place(source, "row", row + 1, row), fields)
                row += 1
    if row == 0:
        raise _empty(source)


def _parse(raw: bytes, settings: ReadSettings) -> dict[str, Any]:
    """One JSON object from one line; `_Unusable` if it is none."""
    if len(raw) > settings.max_document_bytes:
        raise _Unusable(_too_long(settings))
    try:
        value = json.loads(raw.decode(settings.encoding).removeprefix(BOM))
        return _object(value, escapes=b"\\u" in raw)
    except UnicodeDecodeError:
        raise _Unusable(f"not {settings.encoding} text") from None
    except RecursionError:
        raise _Unusable("nested too deeply") from None
    except ValueError as error:
        raise _Unusable(f"not JSON ({error})") from None


def _object(value: Any, escapes: bool = True) -> dict[str, Any]:
    """A JSON value that is an object of whole characters; `_Unusable` if it is none."""
    if not isinstance(value, dict):
        raise _Unusable("not a JSON object")
    if escapes:  # only an escape can smuggle in half a surrogate pair, which is not a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Unusable("half a surrogate pair in a string") from None
    return value


def _text_pieces(source: Source, settings: ReadSettings, rejected: Rejected) -> Iterator[tuple[str, int]]:
    limit = settings.max_document_bytes
    with source.open() as stream:
        if settings.split == "whole":
            raw = stream.read(limit + 1)
            if len(raw) > limit:
                raise DataError(
                    f"data file {source.path} is longer than {limit:,} bytes, too long for one document",
                    "set split to paragraphs or lines, or raise max_document_bytes",
                )
            pieces = iter([(1, 0, raw)])
        else:
            _refuse_wide_encoding(source, settings)
            lines = _lines(stream, limit)
            pieces = lines if settings.split == "lines" else _paragraphs(lines, limit)
        empty = True
        for number, offset, raw in pieces:
            if len(raw) > limit:
                empty = False
                rejected.add(Place(source, "line", number, offset), _too_long(settings), raw)
            elif text := _decode(source, offset, raw, settings.encoding):
                empty = False
                yield text, offset
    if empty:
        raise _empty(source)


def _decode(source: Source, offset: int, raw: bytes, encoding: str) -> str:
    """Text with plain newlines; empty if there is only white space."""
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or encoding.lower().startswith(
        ("utf-16", "utf-32")
    )
    if not wide and b"\0" in raw[:BINARY_PROBE_BYTES]:
        raise _binary(source)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = "set encoding to utf-16"
        else:
            hint = "set encoding to what it is in (e.g. latin-1, cp1252), or convert it to UTF-8"
        message = f"data file {source.path} is not {encoding} text (byte {offset + error.start:,})"
        raise DataError(message, hint) from error
    if "\0" in text:
        raise _binary(source)
    text = text.removeprefix(BOM).replace("\r\n", "\n")
    return text if text.strip() else ""


def _lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, int, bytes]]:
    """Lines without their ends: number (from 1), byte offset, and content, of which at most `limit` + 1 bytes."""
    offset = number = 0
    while raw := stream.readline(limit + 2):
        number += 1
        length = len(raw)
        while not raw.endswith(b"\n") and (rest := stream.readline(limit)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        yield number, offset, raw.rstrip(b"\r\n")[: limit + 1]
        offset += length


def _paragraphs(lines: Iterable[tuple[int, int, bytes]], limit: int) -> Iterator[tuple[int, int, bytes]]:
    """Join lines up to the next blank one, keeping at most `limit` + 1 bytes."""
    number = offset = length = 0
    kept: list[bytes] = []
    for line_number, line_offset, raw in chain(lines, [(0, 0, b"")]):
        if raw.strip():
            if not kept:
                number, offset, length = line_number, line_offset, 0
            if length <= limit:
                kept.append(raw)
                length += len(raw) + 1
        elif kept:
            yield number, offset, b"\n".join(kept)[: limit + 1]
            kept = []


def _refuse_wide_encoding(source: Source, settings: ReadSettings) -> None:
    if "\n".encode(settings.encoding) != b"\n":
        raise UsageError(
            f"{source.path} cannot be read line by line as {settings.encoding}", "convert it to UTF-8 (iconv does)"
        )


def _too_long(settings: ReadSettings) -> str:
    return f"longer than {settings.max_document_bytes:,} bytes"


def _binary(source: Source) -> DataError:
    return DataError(f"data file {source.path} is binary, not text", "if it is UTF-16 text, set encoding to utf-16")


def _empty(source: Source) -> DataError:
    return DataError(f"data file {source.path} is empty", "leave it out, or make it again")
