"""Parquet: a record is a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tallow.data.reading.settings import Piece, empty
from tallow.data.records import Place, Record, Rejected
from tallow.errors import DataError

ROWS = 256


def read_parquet(piece: Piece, columns: list[str] | None, rejected: Rejected) -> Iterator[Record]:
    """The rows of the row groups that begin in the piece.

    Args:
        piece: Cut at any byte.
        columns: Which columns to read; None: all.
        rejected: Gets the rows whose strings are not UTF-8, which nothing has checked before.

    Raises:
        DataError: There is no such column.
    """
    source = piece.source
    with source.reading_errors(), open(source.path, "rb") as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if missing := [column for column in columns or () if column not in names]:
            raise DataError(
                f"data file {source.path} has no column {missing[0]}", f"set text_field; it has: {', '.join(names)}"
            )
        metadata = file.metadata
        if metadata.num_rows == 0:
            raise empty()
        row = 0
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            at = described.column(0).data_page_offset if described.num_columns else 0
            if at < piece.begin or not piece.holds(at):
                row += described.num_rows
                continue
            for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns):
                for fields in _rows(batch):
                    place = Place(source, "row", row + 1, row)
                    row += 1
                    if fields is None:
                        rejected.add(place, "not UTF-8 text", b"")
                    else:
                        yield Record(place, fields)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """The rows; None for those that cannot be decoded."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
