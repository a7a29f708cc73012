"""Byte ranges to be cut out of texts: annotations, which nothing is done about yet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

RANGE = pa.struct([("begin", pa.int32()), ("end", pa.int32())])
CUTS = pa.schema([("cuts", pa.list_(RANGE))])
"""Beside a part: ranges of bytes of each text in UTF-8, sorted, none of which overlap or touch."""

Places = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def make_cuts(rows: Places, begins: Places, ends: Places, count: int) -> pa.Table:
    """`CUTS` of so many texts, of ranges in any order, with their rows; those that overlap or touch are united."""
    high = np.asarray(rows, dtype=np.int64) << 32
    first, behind = high + begins, high + ends
    order = np.argsort(first, kind="stable")
    first, behind = first[order], np.maximum.accumulate(behind[order]) if len(order) else behind
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = first[1:] > behind[:-1]
    first, behind = first[new], behind[np.append(np.flatnonzero(new)[1:] - 1, len(order) - 1)] if len(order) else behind
    offsets = np.searchsorted(first, np.arange(count + 1, dtype=np.int64) << 32).astype(np.int32)
    low = np.int64(2**32 - 1)
    ranges = pa.StructArray.from_arrays(
        [pa.array((first & low).astype(np.int32)), pa.array((behind & low).astype(np.int32))], fields=list(RANGE)
    )
    return pa.table([pa.ListArray.from_arrays(pa.array(offsets), ranges, type=CUTS.field(0).type)], schema=CUTS)


def flat_cuts(cuts: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Rows, begins and ends of all ranges."""
    lists = _one(cuts.column("cuts"))
    ranges = lists.flatten()
    begins, ends = (ranges.field(number).to_numpy() for number in range(2))
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())), begins, ends


def _one(column: pa.ChunkedArray) -> pa.ListArray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return pa.concat_arrays([array]) if array.offset else array
