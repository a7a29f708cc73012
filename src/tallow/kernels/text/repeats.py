"""Windows of bytes that occur before, and the suffix arrays that tell them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native

LONGEST = 2**31 - 1
"""Bytes of a group, one more for each piece."""


class Pieces(NamedTuple):
    """Pieces of UTF-8, which may begin and end within characters, in groups.

    Args:
        data: Their bytes, one after another.
        offsets: Where they begin, and the end of the last one.
        documents: A number of the document that each is of.
        groups: The first piece of each group, and the end of the last one. In a group each piece is compared with those
            before it.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int64]


def find_repeats(pieces: Pieces, window: int, within: bool) -> npt.NDArray[np.int64]:
    """Windows of so many bytes that occur before, exactly.

    Takes time in proportion to the bytes, whatever they are, and 16 times the memory of the largest group.

    Args:
        within: Whether what occurs before in the same document counts.

    Returns:
        R × 3: the piece of a run of such windows, the first of them, and the one behind the last, sorted.
    """
    extension = native() if prefers_fast() else None
    if extension is not None:
        data = np.ascontiguousarray(pieces.data, dtype=np.uint8)
        offsets, groups = (np.ascontiguousarray(array, dtype=np.int64) for array in (pieces.offsets, pieces.groups))
        documents = np.ascontiguousarray(pieces.documents, dtype=np.int32)
        assert not len(groups) or np.diff(offsets[groups] + groups).max(initial=0) <= LONGEST
        flat = extension.find_repeats(
            data.ctypes.data, offsets.ctypes.data, documents.ctypes.data, groups.ctypes.data,
            max(0, len(groups) - 1), window, within,
        )  # fmt: skip
        return flat.reshape(-1, 3)
    data, offsets = pieces.data.tobytes(), pieces.offsets.tolist()
    ranges: list[tuple[int, int, int]] = []
    for begin, end in zip(pieces.groups[:-1].tolist(), pieces.groups[1:].tolist(), strict=True):
        seen: dict[bytes, int] = {}
        for piece in range(begin, end):
            document = int(pieces.documents[piece])
            run = 0
            windows = range(offsets[piece], offsets[piece + 1] - window + 1)
            for place, at in enumerate(windows):
                first = seen.setdefault(data[at : at + window], document if not within else -at)
                if first != (document if not within else -at):
                    run += 1
                elif run:
                    ranges.append((piece, place - run, place))
                    run = 0
            if run:
                ranges.append((piece, len(windows) - run, len(windows)))
    return np.array(ranges, dtype=np.int64).reshape(-1, 3)


def sort_suffixes(text: bytes) -> npt.NDArray[np.int32]:
    """The suffix array: where the suffixes of a text begin, in their order, the shorter one first; linear time."""
    extension = native() if prefers_fast() else None
    if extension is not None:
        assert len(text) <= LONGEST
        return extension.sort_suffixes(text)
    return np.array(sorted(range(len(text)), key=lambda at: text[at:]), dtype=np.int32)
