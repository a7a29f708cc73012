"""Raw files to records and documents, streamed, with bad ones set aside rather than fatal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from tallow.data.reading.code import read_code
from tallow.data.reading.csv_tables import read_csv
from tallow.data.reading.html import read_html
from tallow.data.reading.json_records import read_json
from tallow.data.reading.parquet import read_parquet
from tallow.data.reading.pdf import read_pdf
from tallow.data.reading.pieces import cut
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable
from tallow.data.reading.text import read_text
from tallow.data.reading.warc import read_warc
from tallow.data.records import REJECTED_BYTES, Record, Rejected
from tallow.data.sources import Damaged, Source, find_sources
from tallow.errors import DataError

__all__ = ["Document", "Piece", "ReadSettings", "cut", "read_documents", "read_piece", "read_records"]

ID_LENGTH = 32
Found = TypeVar("Found")
SHOWN_NAMES = 80
RECORDS = ("jsonl", "json", "parquet", "csv", "tsv")
READERS = {
    "text": read_text,
    "markdown": read_text,
    "html": read_html,
    "pdf": read_pdf,
    "warc": read_warc,
    "code": read_code,
}


@dataclass(frozen=True)
class Document:
    """A text and where it came from.

    Args:
        id: Hash of source, offset and content: 32 hexadecimal digits.
        text: The text, as it stood there.
        source: Name of the source.
        offset: As of its `Place`.
        digest: SHA-256 of the text in UTF-8.
        metadata: What else its reader found, such as `title`, `url`, `page`, `path`, `language` or `license`.
    """

    id: str
    text: str
    source: str
    offset: int
    digest: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, text: str, source: str, offset: int, metadata: Mapping[str, str] | None = None) -> Document:
        digest = sha256(text.encode()).digest()
        identity = json.dumps([source, offset, digest.hex()]).encode()
        return cls(sha256(identity).hexdigest()[:ID_LENGTH], text, source, offset, digest, metadata or {})


def read_records(
    sources: str | Path | Iterable[str | Path],
    settings: ReadSettings | None = None,
    rejected: Rejected | None = None,
) -> Iterator[Record]:
    """Stream the objects of JSON files, or the rows of parquet and CSV files.

    A file named `.jsonl` has an object on each line. One named `.json` may have that too, or be one array of
    objects, which is held in memory as a whole.

    Args:
        sources: What `find_sources` takes.
        settings: How to read; `text_field` and `split` do not matter here.
        rejected: Counts what is set aside.

    Raises:
        DataError: A file is missing or of another kind, or too many records are bad.
    """
    settings, rejected = settings or ReadSettings(), rejected or Rejected()
    for source in find_sources([sources] if isinstance(sources, str | Path) else sources):
        require_records(source)
        piece = Piece(source)
        for record in _usable(piece, _records(piece, settings, rejected, None), rejected):
            rejected.good += 1
            yield record
    rejected.check(settings.max_bad_fraction)


def require_records(source: Source) -> None:
    """See to it that a file has records.

    Raises:
        DataError: It is of another kind.
    """
    if source.kind not in RECORDS:
        what = "a text file" if source.kind in ("text", "markdown") else f"a {source.kind.upper()} file"
        raise DataError(f"{source.path} is {what} where records are needed", "give JSON, parquet or CSV")


def read_documents(sources: Iterable[Source], settings: ReadSettings, rejected: Rejected) -> Iterator[Document]:
    """Stream the documents of files of all kinds.

    Raises:
        DataError: A file is missing, has no such column, or too many records are bad.
        UsageError: A text file in this encoding cannot be split, or a package of the extra `data` is missing.
    """
    for source in sources:
        yield from read_piece(Piece(source), settings, rejected)
    rejected.check(settings.max_bad_fraction)


def read_piece(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Document]:
    """The documents that begin in a piece; the pieces of `cut` give those of `read_documents`, in that order.

    Raises:
        DataError, UsageError: As `read_documents`, but for bad records, of which all pieces together may have too many.
    """
    if piece.source.kind in RECORDS:
        found = _text_fields(piece, settings, rejected)
    else:
        found = READERS[piece.source.kind](piece, settings, rejected)
    for text, offset, metadata in _usable(piece, found, rejected):
        rejected.good += 1
        yield Document.make(text, piece.source.name, offset, dict(metadata))


def _usable(piece: Piece, found: Iterator[Found], rejected: Rejected) -> Iterator[Found]:
    """What a reader gives, up to where the file as a whole turns out to be of no use."""
    began = piece.begin > 0
    try:
        for one in found:
            began = True
            yield one
    except Unusable as reason:
        rejected.end(piece.source, piece.begin, str(reason), reason.hint, began)
    except Damaged as error:
        rejected.end(piece.source, piece.begin, error.message, error.hint, began)


def _text_fields(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    name = settings.text_field
    for record in _records(piece, settings, rejected, name):
        text = record.fields.get(name)
        if not isinstance(text, str):
            present = f"field {name} is not a string"
            absent = f"no field {name}, but {', '.join(record.fields)[:SHOWN_NAMES] or 'nothing'}"
            raw = json.dumps(record.fields, default=str).encode()
            rejected.add(record.place, present if name in record.fields else absent, raw)
        elif record.place.unit != "line" and len(text.encode()) > settings.max_document_bytes:
            rejected.add(record.place, settings.too_long, text[:REJECTED_BYTES].encode())
        else:
            yield Text(text, record.place.offset)


def _records(piece: Piece, settings: ReadSettings, rejected: Rejected, column: str | None) -> Iterator[Record]:
    match piece.source.kind:
        case "parquet":
            return read_parquet(piece, None if column is None else [column], settings, rejected)
        case "csv" | "tsv":
            return read_csv(piece, settings, rejected, column)
        case _:
            return read_json(piece, settings, rejected)
