"""Raw files → parts of documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.read import Document, ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import Kind, Source
from tallow.data.steps.tables import PART, REJECTED
from tallow.data.work.step import Made, Step


class ReadConfig(ReadSettings):
    """Some files, and how they are read.

    Args:
        names: What lineage calls them.
        hashes: SHA-256 of each.
        kinds: What is in each.
        paths: Where they lie.
        part_bytes: Of text; a part has at most that much, or one document.
    """

    incidental = frozenset(("paths",))

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    paths: tuple[Path, ...]
    part_bytes: int


def _read(config: ReadConfig, _: Sequence[pa.Table]) -> Iterator[Made]:
    """Parts of documents; the last table is of records that were set aside.

    Counts: `documents <source>` and `bytes <source>` of each part; `good` and `bad` records at the end.
    """
    records: list[dict[str, Any]] = []
    rejected = Rejected(records=records)
    settings = config.model_copy(update={"max_bad_fraction": 1.0})  # it is for all files together to say
    sources = map(Source, config.names, config.paths, config.kinds)
    batch: list[Document] = []
    size = 0
    for document in read_documents(sources, settings, rejected):
        length = len(document.text.encode())
        if batch and size + length > config.part_bytes:
            yield _part(batch)
            batch, size = [], 0
        batch.append(document)
        size += length
    if batch:
        yield _part(batch)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    yield Made(
        pa.table({"record": pa.array(lines, pa.string())}, schema=REJECTED),
        {"good": rejected.good, "bad": rejected.bad},
    )


def _part(documents: Sequence[Document]) -> Made:
    counts: Counter[str] = Counter()
    for document in documents:
        counts[f"documents {document.source}"] += 1
        counts[f"bytes {document.source}"] += len(document.text.encode())
    columns = {
        "id": [bytes.fromhex(document.id) for document in documents],
        "digest": [document.digest[:16] for document in documents],
        "text": [document.text for document in documents],
        "source": [document.source for document in documents],
        "offset": [document.offset for document in documents],
    }
    return Made(pa.table(columns, schema=PART), counts)


READ = Step(f"{__name__}:READ", 1, ReadConfig, _read)
