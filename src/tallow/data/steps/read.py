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


def _read(config: ReadConfig, _: Sequence[pa.Table]) -> Iterator[Made]:
    """Parts of documents; the last table is of records that were set aside.

    Counts: `documents <source>` and `bytes <source>` of each part; `good` and `bad` records, and notes, at the end.
    """
    records: list[dict[str, Any]] = []
    rejected = Rejected(records=records)
    batch: list[Document] = []
    size = 0
    for part in config.pieces:
        source = Source(part.name, part.path, part.kind, part.root)
        for document in read_piece(Piece(source, part.begin, part.end), config, rejected):
            length = len(document.text.encode())
            if batch and size + length > config.part_bytes:
                yield _part(batch)
                batch, size = [], 0
            batch.append(document)
            size += length
    if batch:
        yield _part(batch)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    firsts = [rejected.first] + [""] * len(lines)
    hints = [rejected.hint] + [""] * len(lines)
    table = pa.table({"record": lines, "first": firsts[: len(lines)], "hint": hints[: len(lines)]}, schema=REJECTED)
    notes = {f"{NOTE}{decision}": times for decision, times in rejected.notes.items()}
    yield Made(table, {"good": rejected.good, "bad": rejected.bad, **notes})


def _part(documents: Sequence[Document]) -> Made:
    counts: Counter[str] = Counter()
    for document in documents:
        counts[f"documents {document.source}"] += 1
        counts[f"bytes {document.source}"] += len(document.text.encode())
    return Made(documents_table(documents), counts)


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


READ = Step(f"{__name__}:READ", 1, ReadConfig, _read)
