"""How many rows of parquet are read at once, told by the headers of its pages before any of them is unpacked.

Rows can be batched only by their number, and a few bytes on disk may stand for any number of bytes: a page that is
packed well, or a long string that a dictionary, or the string before it, holds once for many rows. What the footer says
of sizes nobody checks; the headers are what readers go by (`PageHeader` in parquet.thrift of apache/parquet-format).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO, NamedTuple

import pyarrow.parquet as pq

from tallow.data.reading.settings import EXPANSION, Unusable
from tallow.data.reading.thrift import Struct, read_struct

MOST_ROWS = 256
BATCH_BYTES = 2**26
HEADER_BYTES, LONGEST_HEADER = 2**12, 2**24
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN, PLAIN_DICTIONARY, DELTA_STRINGS, RLE_DICTIONARY = 0, 2, 7, 8
IN_DICTIONARY = (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)
"""Arrow can leave in a dictionary what is in these."""
LEVELS_BYTES = 16
"""Of a repeated value, which may be null: two levels, and its place."""


class Page(NamedTuple):
    """A page as its header tells of it.

    Args:
        values: In it; of a dictionary 0.
        bytes: Unpacked.
        encoding: Of the values.
    """

    values: int
    bytes: int
    encoding: int


class Batches(NamedTuple):
    """How a row group is read.

    Args:
        rows: At once.
        dictionaries: Columns whose strings are to be left as numbers in their dictionaries, for of these a row may have
            any number.
    """

    rows: int
    dictionaries: tuple[str, ...]


class _Column(NamedTuple):
    """A column of a row group.

    Args:
        held: Bytes that are in memory at once.
        packed: Bytes on disk.
        rows: That can be read at once.
        dictionary: Its path, if its strings are to be left in their dictionary.
    """

    held: int
    packed: int
    rows: int
    dictionary: str = ""


def batches_of(
    stream: IO[bytes], file: pq.ParquetFile, group: int, columns: Sequence[str] | None, limit: int
) -> Batches:
    """How to read a row group so that memory is about 64 MiB, or that of a page and a row.

    Args:
        stream: The file.
        file: The same.
        group: Number of the row group.
        columns: Those that are read; None: all.
        limit: Bytes of the longest row.

    Raises:
        Unusable: It would take much more than the longest row, and much more than there is on disk.
    """
    described, schema = file.metadata.row_group(group), file.schema
    prefixes = tuple(f"{column}." for column in columns or ())
    numbers = [
        number
        for number in range(described.num_columns)
        if columns is None or f"{described.column(number).path_in_schema}.".startswith(prefixes)
    ]
    budget = BATCH_BYTES // max(1, len(numbers))
    found: list[_Column] = []
    for number in numbers:
        chunk = described.column(number)
        try:
            found.append(_column(list(_pages(stream, chunk)), chunk, schema.column(number), budget))
        except (IndexError, ValueError):
            raise Unusable(f"is damaged (row group {group + 1})", "fetch or make it again") from None
    held, packed = sum(column.held for column in found), sum(column.packed for column in found)
    if held > max(4 * limit, BATCH_BYTES) and held > EXPANSION * packed:
        raise Unusable(
            f"has {packed:,} bytes that unpack to {held:,} at once (row group {group + 1}); what follows is not read",
            "write it again with smaller pages",
        )
    return Batches(
        min((column.rows for column in found), default=MOST_ROWS),
        tuple(column.dictionary for column in found if column.dictionary),
    )


def _column(pages: Sequence[Page], chunk: pq.ColumnChunkMetaData, schema: pq.ColumnSchema, budget: int) -> _Column:
    data = [page for page in pages if page.values]
    dictionary = max((page.bytes for page in pages if not page.values), default=0)
    packed = chunk.total_compressed_size
    if schema.max_repetition_level == 0:
        held = dictionary + max((page.bytes for page in data), default=0)
        return _Column(held, packed, _rows(data, dictionary, budget))
    # a row may have all values
    values = sum(page.values for page in data)
    held = dictionary + max(sum(page.bytes for page in data), values * (LEVELS_BYTES + max(0, schema.length)))
    rows = min(MOST_ROWS, max(1, budget * chunk.num_values // max(1, held)))
    kept = dictionary and schema.physical_type == "BYTE_ARRAY" and all(page.encoding in IN_DICTIONARY for page in data)
    return _Column(held, packed, rows, schema.path if kept else "")


def _rows(pages: Sequence[Page], dictionary: int, budget: int) -> int:
    """How many rows with one value each surely fit, wherever they begin and whichever is the longest."""
    whole = [dictionary, *(page.bytes for page in pages if page.encoding == DELTA_STRINGS)]
    most = min(MOST_ROWS, budget // max(1, *whole))  # each row may be as long as these
    sizes, rows = [0, *accumulate(page.bytes for page in pages)], [0, *accumulate(page.values for page in pages)]
    for last in range(len(pages)):
        first = bisect_left(sizes, sizes[last + 1] - budget)  # from this page on to the last they fit
        if first > 0:
            most = min(most, 1 + rows[last] - rows[min(first, last)])
    return max(1, most)


def _pages(stream: IO[bytes], chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    at, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if dictionary is not None and 0 < dictionary < at:
        at = dictionary
    end, values = at + chunk.total_compressed_size, 0
    if not 0 <= at <= end:
        raise ValueError("no place in the file")
    while at < end and values < chunk.num_values:
        header, length = _header(stream, at)
        kind, size, packed = (_number(header, field) for field in (1, 2, 3))
        if kind in (DATA, DATA_V2):
            detail = header.get(5 if kind == DATA else 8)
            if not isinstance(detail, dict):
                raise ValueError("no word on its values")
            page = Page(_number(detail, 1), size, _number(detail, 2 if kind == DATA else 4))
            values += page.values
            yield page
        elif kind == DICTIONARY:
            yield Page(0, size, PLAIN)
        at += length + packed


def _header(stream: IO[bytes], at: int) -> tuple[Struct, int]:
    """The header that begins at a byte, and its length."""
    size = HEADER_BYTES
    while True:
        stream.seek(at)
        raw = stream.read(size)
        try:
            return read_struct(raw)
        except IndexError:
            if len(raw) < size or size >= LONGEST_HEADER:
                raise
        size *= 4


def _number(fields: Struct, field: int) -> int:
    """A number that is there and not negative."""
    value = fields.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"no field {field}")
    return value
