"""Rows of all parts dealt out into buckets by the first bits of a key, and answers given back to the parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.work.step import pieces


def bucket_bits(size: int, bucket_bytes: int) -> int:
    """So many bits that a bucket is no larger than this, if all are alike."""
    return max(0, -(-size // bucket_bytes) - 1).bit_length()


def dealt(rows: pa.Table, keys: npt.NDArray[np.uint64], bits: int) -> list[pa.RecordBatch]:
    """A batch for each bucket, of the rows whose key begins with its number, in their order."""
    if not bits:
        return pieces(rows, [0])
    bucket = keys >> np.uint64(64 - bits)
    if (bucket[1:] < bucket[:-1]).any():
        order = np.argsort(bucket, kind="stable")
        rows, bucket = rows.take(order), bucket[order]
    return pieces(rows, np.searchsorted(bucket, np.arange(1 << bits, dtype=np.uint64)).tolist())


def answered(rows: pa.Table, parts: npt.NDArray[np.int64], count: int) -> list[pa.RecordBatch]:
    """A batch for each of so many parts, of the rows that are about it, in their order."""
    order = np.argsort(parts, kind="stable")
    return pieces(rows.take(order), np.searchsorted(parts[order], np.arange(count)).tolist())


def by_row(answers: pa.Table, rows: int) -> pa.Table:
    """Answers about rows of a part (column `row`), now beside all of its rows; null: there was none."""
    place = np.full(rows, -1)
    place[answers.column("row").to_numpy()] = np.arange(len(answers))
    return answers.drop_columns(["row"]).take(pa.array(place, mask=place < 0))


def numbers_of(tables: Sequence[pa.Table]) -> npt.NDArray[np.int64]:
    """For each row of some tables, one after another, the number of its table."""
    return np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
