"""The tables that steps hand on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates.cuts import flat_cuts
from tallow.data.edits import EDITS

WORDS = 2  # of 64 bits, in a digest and in an id

PART = pa.schema(
    [
        ("id", pa.binary(16)),
        ("digest", pa.binary(16)),
        ("text", pa.string()),
        ("source", pa.string()),
        ("offset", pa.int64()),
        ("metadata", pa.string()),
    ]
)
"""Documents: `digest` is the first half of the SHA-256 of the text, `metadata` a JSON object."""

VERDICTS = pa.schema([("dropped_by", pa.string())])
"""Beside a part: what has dropped each document; null: nothing so far."""

REJECTED = pa.schema([("record", pa.string()), ("first", pa.string()), ("hint", pa.string())])
"""Lines of `rejected.jsonl`; of the first one what is said of it, and what can be done about it."""


def texts_of(documents: pa.Table) -> pa.StringArray:
    """Their texts in one array."""
    return _one(documents["text"])


def characters(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """How many each text has, white space at the ends not counted."""
    return pc.call_function("utf8_length", [pc.call_function("utf8_trim_whitespace", [texts])])


def edits_of(table: pa.Table) -> pa.ListArray:
    """What is to be done to texts, as `EDITS`, by a table that has that, or `CUTS`."""
    if "edits" in table.column_names:
        return _one(table["edits"])
    rows, begins, ends = flat_cuts(table)
    offsets = np.searchsorted(rows, np.arange(table.num_rows + 1)).astype(np.int32)
    columns = [
        pa.array(begins.astype(np.int64)),
        pa.array(ends.astype(np.int64)),
        pa.array([""] * len(rows), pa.string()),
    ]
    ranges = pa.StructArray.from_arrays(columns, fields=list(EDITS.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), ranges, type=EDITS)


def known_columns(tables: Sequence[pa.Table]) -> dict[str, pa.ChunkedArray]:
    """What is known of documents by these tables beside them, without lists of places."""
    return {
        name: table[name] for table in tables for name in table.column_names if not pa.types.is_list(table[name].type)
    }


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


def words(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Digests or ids as N × 2 words, the first one the more significant."""
    array = _one(column)
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.empty((0, WORDS), dtype=np.uint64)
    flat = np.frombuffer(buffer, dtype=">u8", count=WORDS * len(array), offset=16 * array.offset)
    return flat.astype(np.uint64).reshape(-1, WORDS)


def kept(verdicts: pa.Table) -> npt.NDArray[np.bool_]:
    """Which documents nothing has dropped."""
    return verdicts.column("dropped_by").is_null().to_numpy()
