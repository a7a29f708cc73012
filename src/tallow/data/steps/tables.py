"""The tables that steps hand on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
    texts = documents.column("text").combine_chunks()
    return pa.concat_arrays(texts.chunks) if isinstance(texts, pa.ChunkedArray) else texts


def words(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Digests or ids as N × 2 words, the first one the more significant."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what has no chunk stays one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.empty((0, WORDS), dtype=np.uint64)
    flat = np.frombuffer(buffer, dtype=">u8", count=WORDS * len(array), offset=16 * array.offset)
    return flat.astype(np.uint64).reshape(-1, WORDS)


def kept(verdicts: pa.Table) -> npt.NDArray[np.bool_]:
    """Which documents nothing has dropped."""
    return verdicts.column("dropped_by").is_null().to_numpy()
