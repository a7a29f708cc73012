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

from tallow.data.sources import Source, find_sources
from tallow.errors import DataError, UsageError, writing
from tallow.recipe import Section

ID_LENGTH = 32
REJECTED_BYTES = 200
PARQUET_ROWS = 256
BINARY_PROBE_BYTES = 8192
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
        offset: Byte offset in the unpacked file; for parquet the row number.
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


class Rejected:
    """Counts good records and bad ones, and keeps the bad ones in a JSONL file.

    Args:
        path: Where bad records go (`source`, `line`, `reason`, `start`: the first bytes); None: nowhere.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.good = 0
        self.bad = 0
        self.first = ""

    def add(self, source: Source, line: int, reason: str, raw: bytes) -> None:
        """Set aside record number `line` (from 1) of a source."""
        self.bad += 1
        self.first = self.first or f"{source.name}, {_unit(source)} {line}: {reason}"
        if self.path is not None:
            start = raw[:REJECTED_BYTES].decode("utf-8", errors="backslashreplace")
            record = {"source": source.name, "line": line, "reason": reason, "start": start}
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def check(self, max_bad_fraction: float) -> None:
        """Say whether what was read is good enough.

        Raises:
            DataError: Nothing good was read, or too large a share was bad.
        """
        total = self.good + self.bad
        if self.bad and (self.good == 0 or self.bad > max_bad_fraction * total):
            raise DataError(
                f"{self.bad:,} of {total:,} records cannot be used (first: {self.first})",
                "mend the data, or allow more with max_bad_fraction",
            )


class _Unusable(Exception):
    """A record that is set aside; says why."""


def read_records(
    sources: str | Path | Iterable[str | Path],
    settings: ReadSettings | None = None,
    rejected: Rejected | None = None,
) -> Iterator[dict[str, Any]]:
    """Stream the objects of JSONL files, or the rows of parquet files.

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
            raise DataError(f"{source.path} is a text file where records are needed", "give JSONL or parquet")
        for _, _, record in _records(source, settings, rejected, columns=None):
            rejected.good += 1
            yield record
    rejected.check(settings.max_bad_fraction)


def read_documents(sources: Iterable[Source], settings: ReadSettings, rejected: Rejected) -> Iterator[Document]:
    """Stream the documents of text, JSONL and parquet files.

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
    for number, offset, record in _records(source, settings, rejected, columns=[field]):
        text = record.get(field)
        if not isinstance(text, str):
            reason = f"field {field} is not a string" if field in record else f"no field {field}"
            rejected.add(source, number, reason, json.dumps(record, default=str).encode())
        elif source.kind == "parquet" and len(text.encode()) > settings.max_document_bytes:
            rejected.add(source, number, _too_long(settings), text[:REJECTED_BYTES].encode())
        else:
            yield text, offset


def _records(
    source: Source, settings: ReadSettings, rejected: Rejected, columns: list[str] | None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Records with their number (from 1) and offset (bytes in JSONL, rows in parquet)."""
    if source.kind == "parquet":
        yield from _rows(source, columns)
        return
    _refuse_wide_encoding(source, settings)
    empty = True
    with source.open() as stream:
        for number, offset, raw in _lines(stream, settings.max_document_bytes):
            if number == 1 and b"\0" in raw[:BINARY_PROBE_BYTES]:
                raise _binary(source)
            if not raw.strip():
                continue
            empty = False
            try:
                record = _parse(raw, settings)
            except _Unusable as reason:
                rejected.add(source, number, str(reason), raw)
            else:
                yield number, offset, record
    if empty:
        raise _empty(source)


def _rows(source: Source, columns: list[str] | None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    row = 0
    with source.reading_errors(), open(source.path, "rb") as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if missing := [column for column in columns or () if column not in names]:
            raise DataError(
                f"data file {source.path} has no column {missing[0]}", f"set text_field; it has: {', '.join(names)}"
            )
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for record in batch.to_pylist():
                yield row + 1, row, record
                row += 1
    if row == 0:
        raise _empty(source)


def _parse(raw: bytes, settings: ReadSettings) -> dict[str, Any]:
    """One JSON object from one line; `_Unusable` if it is none."""
    if len(raw) > settings.max_document_bytes:
        raise _Unusable(_too_long(settings))
    try:
        record = json.loads(raw.decode(settings.encoding).removeprefix(BOM))
        if b"\\u" in raw:  # only an escape can smuggle in half a surrogate pair, which is not a character
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _Unusable(f"not {settings.encoding} text") from None
    except UnicodeEncodeError:
        raise _Unusable("half a surrogate pair in a string") from None
    except RecursionError:
        raise _Unusable("nested too deeply") from None
    except ValueError as error:
        raise _Unusable(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise _Unusable("not a JSON object")
    return record


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
                rejected.add(source, number, _too_long(settings), raw)
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


def _unit(source: Source) -> str:
    return "row" if source.kind == "parquet" else "line"
