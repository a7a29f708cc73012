"""Which documents stay and which are held out, decided by content alone.

So neither the order of the files nor the number of processes matters, and texts that are the same always fall on
the same side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallow.errors import DataError

Keys = npt.NDArray[np.uint64]
"""A row a document: two words of the SHA-256 of its text, two words of its id."""


def is_held_out(digest: bytes, fraction: float) -> bool:
    """Whether a text with this SHA-256 belongs to the validation set.

    Sets are nested: what is held out at a small fraction is held out at any larger one.
    """
    return int.from_bytes(digest[:8]) < _threshold(fraction)


def choose_held_out(keys: Keys, fraction: float) -> npt.NDArray[np.bool_]:
    """`is_held_out` for many texts; if that leaves a side empty, the nearest text changes sides.

    Raises:
        DataError: There are no documents, or something is to be held out of a single text.
    """
    texts = np.unique(keys[:, :2], axis=0)  # sorted
    if len(texts) == 0:
        raise DataError("no document is left", "give more text, or lower min_chars")
    if fraction == 0:
        return np.zeros(len(keys), dtype=bool)
    if len(texts) == 1:
        raise DataError(
            "there is only one document, so none can be held out for validation",
            "set prepare.split to paragraphs or lines, or prepare.validation_fraction to 0",
        )
    count = int((texts[:, 0] < np.uint64(_threshold(fraction))).sum())
    last = texts[min(max(count, 1), len(texts) - 1) - 1]
    return (keys[:, 0] < last[0]) | ((keys[:, 0] == last[0]) & (keys[:, 1] <= last[1]))


def survivors(keys: Keys) -> npt.NDArray[np.bool_]:
    """Of the documents with the same text, the one with the smallest id."""
    order = np.lexsort(keys.T[::-1])
    texts = keys[order, :2]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = (texts[1:] != texts[:-1]).any(axis=1)
    keep = np.zeros(len(keys), dtype=bool)
    keep[order[first]] = True
    return keep


def _threshold(fraction: float) -> int:
    return int(fraction * 2**64)
