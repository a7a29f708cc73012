"""Prepared documents on disk: parquet parts of bounded size, the same bytes for the same documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallow.data.manifest import DocumentCounts
from tallow.errors import DataError, reading

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("language", pa.string()),
    ]
)
PART_BYTES = 256 * 2**20
ROW_GROUP_BYTES = 4 * 2**20


class DocumentWriter:
    """Writes one split into `part-00000.parquet`, `part-00001.parquet`, …

    Args:
        directory: Where the parts go; made here.
        part_bytes: A part is closed once its text has this many bytes.
        row_group_bytes: Likewise a row group; what a reader holds in memory at once.
    """

    def __init__(self, directory: Path, part_bytes: int = PART_BYTES, row_group_bytes: int = ROW_GROUP_BYTES) -> None:
        self.directory, self.part_bytes, self.row_group_bytes = directory, part_bytes, row_group_bytes
        self.directory.mkdir()
        self.parts: list[str] = []
        self.documents = self.bytes = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = self._part_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Append documents (columns as in `SCHEMA`)."""
        ends = text_sizes(batch).cumsum()
        self.documents += batch.num_rows
        begin = 0
        while begin < batch.num_rows:
            before = int(ends[begin - 1]) if begin else 0
            full = before + self.row_group_bytes - self._pending_bytes
            end = min(int(np.searchsorted(ends, full)) + 1, batch.num_rows)
            size = int(ends[end - 1]) - before
            self.bytes += size
            self._pending.append(batch.slice(begin, end - begin))
            self._pending_bytes += size
            if self._pending_bytes >= self.row_group_bytes:
                self._flush()
            begin = end

    def close(self) -> DocumentCounts:
        """Write what is left; the counts for the manifest."""
        self._flush()
        self._end_part()
        return DocumentCounts(documents=self.documents, bytes=self.bytes, parts=tuple(self.parts))

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._pending, SCHEMA)
        if table.num_rows:
            if self._writer is None:
                self.parts.append(f"part-{len(self.parts):05}.parquet")
                path = self.directory / self.parts[-1]
                self._writer = pq.ParquetWriter(
                    path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False
                )
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._part_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if self._part_bytes >= self.part_bytes:
            self._end_part()

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._part_bytes = None, 0


def read_documents_split(directory: Path, counts: DocumentCounts, rows: int) -> Iterator[pa.RecordBatch]:
    """Stream prepared documents in their order, at most `rows` at a time.

    Raises:
        DataError: A part is missing or damaged, or there are not as many documents as the manifest says.
    """
    found = 0
    for part in counts.parts:
        path = directory / part
        try:
            with reading(path, "documents"), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=rows, columns=SCHEMA.names):
                    found += batch.num_rows
                    yield batch
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"documents {path} are damaged", "run the stage prepare again") from error
    if found != counts.documents:
        raise DataError(
            f"{directory} holds {found:,} documents where its manifest says {counts.documents:,}",
            "run the stage prepare again",
        )


def text_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the column `text` in UTF-8."""
    return int(text_sizes(batch).sum())


def text_sizes(batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
    """Bytes of each text of the column `text` in UTF-8."""
    return pc.call_function("binary_length", [batch.column("text")]).to_numpy()
