"""How documents come to lie in rows of a fixed length.

- `split`: all documents one after another, cut where a row is full; attention stays within documents. No padding, but
  documents lose their beginnings where they are cut.
- `concatenate`: likewise, and attention goes across documents (arXiv 2005.14165, appendix B).
- `best_fit`: only documents longer than a row are cut; the others, and what is left of those, go where they leave
  least room (best-fit decreasing; arXiv 2404.10830, section 3). Rows end in padding, mostly far below one in a hundred.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Packing = Literal["split", "concatenate", "best_fit"]
Integers = npt.NDArray[np.int64]


class BestFit:
    """Rows of whole documents, and of pieces of those that are longer than a row.

    A piece begins with the last token of the one before it, so that each token but a document's first is a target once.
    Documents of a single token have no target and are left out.

    Args:
        begins: Where each document begins among all tokens, rising; the first at 0.
        num_tokens: Of all documents.
        capacity: Tokens of a row, at least 2.
    """

    def __init__(self, begins: Integers, num_tokens: int, capacity: int) -> None:
        targets = np.diff(begins, append=num_tokens) - 1
        counts = -(-targets // (capacity - 1))
        documents = np.repeat(np.arange(len(begins)), counts)
        number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its document
        first = begins[documents] + number * (capacity - 1)
        lengths = np.minimum(targets[documents] - number * (capacity - 1), capacity - 1) + 1
        rows, self.num_rows = best_fit(lengths, capacity)
        # in each row longer pieces come first, as they were put there
        order = np.lexsort((np.arange(len(rows)), -lengths, rows))
        self._begins, self._ends = first[order], (first + lengths)[order]
        self._starts = np.searchsorted(rows[order], np.arange(self.num_rows + 1))
        self.padding = self.num_rows * capacity - int(lengths.sum())
        """Tokens of all rows that are nobody's."""

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """Where among all tokens the pieces of a row begin and end."""
        chosen = slice(self._starts[row], self._starts[row + 1])
        return list(zip(self._begins[chosen].tolist(), self._ends[chosen].tolist(), strict=True))

    def all_pieces(self) -> tuple[Integers, Integers, Integers]:
        """The row, the begin and the end of each piece."""
        rows = np.repeat(np.arange(self.num_rows), np.diff(self._starts))
        return rows, self._begins, self._ends


def best_fit(lengths: Integers, capacity: int) -> tuple[Integers, int]:
    """The row of each piece, and the number of rows.

    The longest first (of equal ones in their order), each goes into the row with the least room that is enough, of
    several into the one that was last given a piece. About a microsecond a piece.
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set if there is a row with room for r tokens
    count = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, count
            count += 1
        left = room - length
        if left:
            by_room.setdefault(left, []).append(row)
            rooms |= 1 << left
        rows[piece] = row
    return rows, count
