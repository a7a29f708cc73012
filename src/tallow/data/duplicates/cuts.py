"""Byte ranges to be cut out of texts: annotations, of which several can be united before any is applied."""

from __future__ import annotations

from collections.abc import Sequence

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


def unite_cuts(annotations: Sequence[pa.Table]) -> pa.Table:
    """`CUTS` of what any of some `CUTS` beside the same texts cut."""
    found = [flat_cuts(cuts) for cuts in annotations]
    rows, begins, ends = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return make_cuts(rows, begins, ends, len(annotations[0]))


def flat_cuts(cuts: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Rows, begins and ends of all ranges."""
    lists = _one(cuts.column("cuts"))
    ranges = lists.flatten()
    begins, ends = (ranges.field(number).to_numpy() for number in range(2))
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())), begins, ends


def apply_cuts(texts: pa.StringArray, cuts: pa.Table) -> pa.StringArray:
    """Texts without these ranges, none of which begins or ends within a character."""
    assert len(texts) == len(cuts)
    rows, begins, ends = flat_cuts(cuts)
    if not len(rows):
        return texts
    texts = pa.concat_arrays([texts])  # offsets from 0 on
    _, offsets_buffer, data_buffer = texts.buffers()
    assert offsets_buffer is not None
    assert data_buffer is not None
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32, count=len(texts) + 1)
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    first, behind = offsets[rows].astype(np.int64) + begins, offsets[rows].astype(np.int64) + ends
    assert (behind <= offsets[rows + 1]).all()
    for edges in (first, behind):
        assert not ((data[edges[edges < len(data)]] & 0xC0) == 0x80).any()
    kept_from, kept_to = np.append(offsets[0], behind), np.append(first, offsets[-1])
    kept = memoryview(data.data)
    joined = b"".join([kept[begin:end] for begin, end in zip(kept_from.tolist(), kept_to.tolist(), strict=True)])
    lost = np.concatenate([[0], np.cumsum(behind - first)])
    lengths_lost = lost[np.searchsorted(rows, np.arange(len(texts) + 1))]
    left = (offsets - offsets[0] - lengths_lost).astype(np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(left), pa.py_buffer(joined), texts.buffers()[0])


def _one(column: pa.ChunkedArray) -> pa.ListArray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return pa.concat_arrays([array]) if array.offset else array
