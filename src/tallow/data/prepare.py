"""The stage `prepare`: raw files → documents, exact duplicates dropped, a validation set held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.console import progress, say
from tallow.data.documents import SCHEMA, DocumentWriter
from tallow.data.manifest import DocumentCounts, DocumentManifest, SourceRecord, save_manifest
from tallow.data.read import Document, ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import SourceNames, find_sources
from tallow.data.split import Keys, choose_held_out, survivors
from tallow.files import atomic_directory, hash_file
from tallow.run import StageRun

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 1024


class PrepareConfig(ReadSettings):
    """Settings of the prepare stage, and how raw files are read.

    Args:
        sources: Files, directories and globs, or `tallow:pepys`, the text that comes with the package.
        validation_fraction: Share of the documents held out, chosen by the hash of their text; 0 holds out none.
        deduplicate: Keep one of the documents with the same text: the one with the smallest id.
        min_chars: Drop documents with fewer characters, white space at the ends not counted.
    """

    sources: SourceNames = Field(min_length=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    deduplicate: bool = True
    min_chars: int = Field(default=1, ge=1)


def prepare(config: PrepareConfig, run: StageRun) -> dict[str, Any]:
    """Read the sources and write `documents/`.

    Everything is read once, into a spool; then, the hash of every text known, it is decided for each document
    whether it stays and on which side. Memory: 32 bytes a document.

    Returns:
        `documents`, `train_documents`, `validation_documents`, `bytes`, `duplicates`, `too_short`, `rejected`.

    Raises:
        DataError: A source is unusable, or too few documents are left to hold some out.
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    sources = find_sources(config.sources, config.directories)
    with atomic_directory(run.directory / "documents") as directory:
        rejected = Rejected(directory / "rejected.jsonl")
        spool = _Spool(directory / "spool.arrow")
        spool.fill(read_documents(sources, config, rejected), config.min_chars)
        keys = spool.keys()
        keep = survivors(keys) if config.deduplicate else np.ones(len(keys), dtype=bool)
        held_out = choose_held_out(keys, config.validation_fraction)
        sides = {"train": keep & ~held_out, "validation": keep & held_out}
        manifest = DocumentManifest(
            splits={split: spool.copy(directory / split, chosen) for split, chosen in sides.items()},
            sources=tuple(
                SourceRecord(
                    name=source.name,
                    sha256=hash_file(source.path),
                    documents=spool.documents[source.name],
                    bytes=spool.bytes[source.name],
                )
                for source in sources
            ),
            duplicates=len(keep) - int(keep.sum()),
            too_short=spool.too_short,
            rejected=rejected.bad,
        )
        spool.path.unlink()
        save_manifest(manifest, directory)
    if rejected.bad:
        say(f"{rejected.bad:,} records set aside, see {run.directory / 'documents' / 'rejected.jsonl'}")
    for decision, times in sorted(rejected.notes.items()):
        say(f"{times:,} × {decision}")
    counts = manifest.splits
    return {
        "documents": sum(split.documents for split in counts.values()),
        **{f"{name}_documents": split.documents for name, split in counts.items()},
        "bytes": sum(split.bytes for split in counts.values()),
        "duplicates": manifest.duplicates,
        "too_short": manifest.too_short,
        "rejected": manifest.rejected,
    }


class _Spool:
    """All documents in one Arrow file, to be copied out selectively once their hashes are known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.too_short = 0
        self._keys = bytearray()

    def fill(self, documents: Iterable[Document], min_chars: int) -> None:
        """Write all documents that are long enough."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        batch: list[Document] = []
        batch_bytes = 0
        with (
            open(self.path, "wb") as file,
            pa.ipc.new_file(file, SCHEMA, options=options) as writer,
            progress("prepare", None, "documents") as bar,
        ):
            for document in documents:
                size = len(document.text.encode())
                self.documents[document.source] += 1
                self.bytes[document.source] += size
                if len(document.text.strip()) < min_chars:
                    self.too_short += 1
                    continue
                self._keys += document.digest[:16] + bytes.fromhex(document.id)
                batch.append(document)
                batch_bytes += size
                if batch_bytes >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                    writer.write_batch(_record_batch(batch))
                    bar.advance(len(batch))
                    batch, batch_bytes = [], 0
            writer.write_batch(_record_batch(batch))
            bar.advance(len(batch))

    def keys(self) -> Keys:
        return np.frombuffer(self._keys, dtype=">u8").astype(np.uint64).reshape(-1, 4)

    def copy(self, directory: Path, chosen: npt.NDArray[np.bool_]) -> DocumentCounts:
        """Write the chosen documents into `directory`."""
        writer = DocumentWriter(directory)
        start = 0
        with pa.memory_map(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                writer.add(batch.filter(pa.array(chosen[start : start + batch.num_rows])))
                start += batch.num_rows
        return writer.close()


def _record_batch(documents: Sequence[Document]) -> pa.RecordBatch:
    columns = [[getattr(document, name) for document in documents] for name in SCHEMA.names]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
