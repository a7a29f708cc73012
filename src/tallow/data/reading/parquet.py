"""Parquet: a record is a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallow.data.reading.parquet_pages import BATCH_BYTES, batches_of
from tallow.data.reading.settings import Piece, ReadSettings, Unusable, empty
from tallow.data.records import Place, Record, Rejected
from tallow.errors import DataError

STREAM_BYTES = 2**20
STRINGS = (pa.StringArray, pa.LargeStringArray, pa.BinaryArray, pa.LargeBinaryArray)


def read_parquet(
    piece: Piece, columns: list[str] | None, settings: ReadSettings, rejected: Rejected
) -> Iterator[Record]:
    """The rows of the row groups that begin in the piece.

    Args:
        piece: Cut at any byte.
        columns: Which columns to read; None: all.
        settings: Says how long a row may be.
        rejected: Gets longer rows, and those whose strings are not UTF-8, which nothing has checked before.

    Raises:
        DataError: There is no such column.
        Unusable: The file holds nothing, or a row group unpacks to too much at once.
    """
    source, limit = piece.source, settings.max_document_bytes
    with source.reading_errors(), open(source.path, "rb") as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if missing := [column for column in columns or () if column not in names]:
            raise DataError(
                f"data file {source.path} has no column {missing[0]}", f"set text_field; it has: {', '.join(names)}"
            )
        metadata = file.metadata
        if metadata.num_rows == 0:
            raise empty()
        _require_parts(metadata, source.path.stat().st_size)
        readers: dict[tuple[str, ...], pq.ParquetFile] = {}
        row = 0
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            at = described.column(0).data_page_offset if described.num_columns else 0
            if at < piece.begin or not piece.holds(at):
                row += described.num_rows
                continue
            rows, dictionaries = batches_of(stream, file, group, columns, limit)
            if dictionaries not in readers:
                readers[dictionaries] = pq.ParquetFile(
                    stream, metadata=metadata, read_dictionary=dictionaries, buffer_size=STREAM_BYTES
                )
            for batch in readers[dictionaries].iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                for fields in _rows(batch, limit):
                    place = Place(source, "row", row + 1, row)
                    row += 1
                    if isinstance(fields, Unusable):
                        rejected.add(place, str(fields), b"")
                    else:
                        yield Record(place, fields)


def _require_parts(metadata: pq.FileMetaData, size: int) -> None:
    """See to it that row groups do not share bytes, of which a few could then be any number of rows."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    packed = sum(group.column(number).total_compressed_size for group in groups for number in range(group.num_columns))
    if packed > size:
        raise Unusable(f"is damaged (row groups of {packed:,} bytes in {size:,})", "fetch or make it again")


def _rows(batch: pa.RecordBatch, limit: int) -> Iterator[dict[str, Any] | Unusable]:
    """The rows, or why they cannot be used; made Python's so many at once as take little memory."""
    size = batch.nbytes  # which is too little only where a dictionary holds what occurs more than once
    if size > limit or any(map(_may_share, batch.schema.types)):
        size = sum(map(_bytes, batch.columns))
    if batch.num_rows == 1 and size > limit:
        yield Unusable(f"longer than {limit:,} bytes")
    elif batch.num_rows > 1 and size > BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _rows(batch.slice(0, half), limit)
        yield from _rows(batch.slice(half), limit)
    else:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:
            if batch.num_rows == 1:
                yield Unusable("not UTF-8 text")
                return
            for at in range(batch.num_rows):
                yield from _rows(batch.slice(at, 1), limit)


def _may_share(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType)


def _bytes(array: pa.Array) -> int:
    """Bytes of the values, each where it occurs."""
    if isinstance(array, pa.DictionaryArray):
        return _sum(pc.call_function("binary_length", [array.dictionary]).take(array.indices))
    if isinstance(array, pa.StructArray):
        return sum(map(_bytes, array.flatten()))
    if isinstance(array, pa.MapArray):
        begin, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_bytes(part.slice(begin, end - begin)) for part in (array.keys, array.items))
    if isinstance(array, pa.ExtensionArray):
        return _bytes(array.storage)
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _bytes(array.flatten())
    if isinstance(array, STRINGS):
        return _sum(pc.call_function("binary_length", [array]))
    return array.nbytes


def _sum(numbers: pa.Array) -> int:
    return pc.call_function("sum", [numbers]).as_py() or 0
