"""Parquet: a record is a row."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from tallow.data.reading.settings import Piece, empty
from tallow.data.records import Place, Record
from tallow.errors import DataError

ROWS = 256


def read_parquet(piece: Piece, columns: list[str] | None) -> Iterator[Record]:
    """The rows of the row groups that begin in the piece.

    Args:
        piece: Cut at any byte.
        columns: Which columns to read; None: all.

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
                for fields in batch.to_pylist():
                    yield Record(Place(source, "row", row + 1, row), fields)
                    row += 1
