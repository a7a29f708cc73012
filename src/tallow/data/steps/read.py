"""Raw files → parts of documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.read import Document, Piece, ReadSettings, read_piece
from tallow.data.records import Rejected
from tallow.data.sources import Kind, Source
from tallow.data.steps.tables import PART, REJECTED
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

NOTE = "note "


class FilePiece(Section):
    """A piece of a file.

    Args:
        name: What lineage calls the file.
        sha256: Of all of it.
        kind: What is in it.
        begin, end: As of `Piece`.
        path: Where it lies.
        root: As of `Source`.
    """

    incidental = frozenset(("path", "root"))

    name: str
    sha256: str
    kind: Kind
    begin: int
    end: int | None
    path: Path
    root: Path | None


class ReadConfig(ReadSettings):
    """Some pieces of files, and how they are read.

    Args:
        pieces: In their order.
        part_bytes: Of text; a part has at most that much, or one document.
    """

    pieces: tuple[FilePiece, ...]
    part_bytes: int


WAITING_BYTES = 2**20
"""Of text, which Python holds before it goes to a part."""


def _read(config: ReadConfig, _: Sequence[pa.Table]) -> Iterator[Made]:
    """Parts of documents; the last table is of records that were set aside.

    Counts: `documents <source>` and `bytes <source>` of each part; `good` and `bad` records, and notes, at the end.
    """
    records: list[dict[str, Any]] = []
    rejected = Rejected(records=records)
    part = _Part()
    for piece in config.pieces:
        source = Source(piece.name, piece.path, piece.kind, piece.root)
        for document in read_piece(Piece(source, piece.begin, piece.end), config, rejected):
            length = len(document.text.encode())
            if part.documents and part.bytes + length > config.part_bytes:
                yield part.made()
                part = _Part()
            part.add(document, length)
    if part.documents:
        yield part.made()
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    firsts = [rejected.first] + [""] * len(lines)
    hints = [rejected.hint] + [""] * len(lines)
    table = pa.table({"record": lines, "first": firsts[: len(lines)], "hint": hints[: len(lines)]}, schema=REJECTED)
    notes = {f"{NOTE}{decision}": times for decision, times in rejected.notes.items()}
    yield Made(table, {"good": rejected.good, "bad": rejected.bad, **notes})


class _Part:
    """Documents that become a part; those of a few MB are made Arrow's, which takes much less memory than Python's."""

    def __init__(self) -> None:
        self.documents = self.bytes = 0
        self._counts: Counter[str] = Counter()
        self._tables: list[pa.Table] = []
        self._waiting: list[Document] = []
        self._waiting_bytes = 0

    def add(self, document: Document, length: int) -> None:
        self._waiting.append(document)
        self._waiting_bytes += length
        self.documents += 1
        self.bytes += length
        self._counts[f"documents {document.source}"] += 1
        self._counts[f"bytes {document.source}"] += length
        if self._waiting_bytes >= WAITING_BYTES:
            self._settle()

    def made(self) -> Made:
        if self._waiting:
            self._settle()
        table = pa.concat_tables(self._tables).combine_chunks()
        self._tables.clear()
        return Made(table, self._counts)

    def _settle(self) -> None:
        self._tables.append(documents_table(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


def documents_table(documents: Sequence[Document]) -> pa.Table:
    """Documents as `PART`."""
    columns = {
        "id": [bytes.fromhex(document.id) for document in documents],
        "digest": [document.digest[:16] for document in documents],
        "text": [document.text for document in documents],
        "source": [document.source for document in documents],
        "offset": [document.offset for document in documents],
        "metadata": [
            json.dumps(dict(document.metadata), sort_keys=True) if document.metadata else None for document in documents
        ],
    }
    return pa.table(columns, schema=PART)


READ = Step(f"{__name__}:READ", 2, ReadConfig, _read)
