"""What is done about documents that have items of benchmarks: they are dropped, or what was found is cut out."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.data.edits import EDITS
from tallow.recipe import Section

CONTAMINATED = "contaminated"
PARTED = "\n\n"
"""What stands where something was cut out between two pieces."""


class ContaminationRule(Section):
    """What is too much, and what follows.

    Args:
        overlap: Of an item that a document may not have; 0.5 as in Marin, 0.7 (of 8-grams) in arXiv 2204.02311.
        action: `drop` the document, or `cut` what was found out of it.
        around: Characters that are cut on either side.
        shortest_piece: A piece of a cut document with fewer characters is cut, too.
        most_pieces: A document that would be cut into more is dropped. This and the two before it are those of
            arXiv 2005.14165, appendix C.
    """

    overlap: float = Field(default=0.5, gt=0, le=1)
    action: Literal["drop", "cut"] = "drop"
    around: int = Field(default=200, ge=0)
    shortest_piece: int = Field(default=200, ge=0)
    most_pieces: int = Field(default=10, ge=1)


def judge(texts: pa.StringArray, columns: pa.Table, rule: ContaminationRule) -> tuple[npt.NDArray[np.bool_], pa.Array]:
    """Which documents are dropped, and what is cut out of the others (`EDITS`).

    Args:
        texts: Of N documents.
        columns: `contamination.overlap` and `contamination.spans` of these.
        rule: What is too much.
    """
    found = columns.column("contamination.overlap").to_numpy() >= rule.overlap
    edits: list[list[dict[str, int | str]]] = [[] for _ in range(len(texts))]
    if rule.action == "drop":
        return found, pa.array(edits, EDITS)
    dropped = np.zeros(len(texts), dtype=bool)
    spans = columns.column("contamination.spans")
    for row in np.flatnonzero(found).tolist():
        ranges = [(each["begin"], each["end"]) for each in spans[row].as_py() if each["overlap"] >= rule.overlap]
        text = bytes(texts[row].as_buffer())
        gone = _widened(text, ranges, rule)
        pieces = len(gone) + 1 - (gone[0][0] == 0) - (gone[-1][1] == len(text))
        dropped[row] = not 0 < pieces <= rule.most_pieces
        if not dropped[row]:
            edits[row] = [
                {"start": begin, "end": end, "text": PARTED if begin > 0 and end < len(text) else ""}
                for begin, end in gone
            ]
    return dropped, pa.array(edits, EDITS)


def _widened(text: bytes, ranges: list[tuple[int, int]], rule: ContaminationRule) -> list[tuple[int, int]]:
    """What is cut: ranges with what is around them, and the pieces between that are too short."""
    gone: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        begin, end = _back(text, begin, rule.around), _on(text, end, rule.around)
        before = gone[-1][1] if gone else 0
        if before >= begin or _is_short(text, before, begin, rule.shortest_piece):
            begin = gone.pop()[0] if gone else 0
        gone.append((begin, max(before, end)))
    begin, end = gone[-1]
    if _is_short(text, end, len(text), rule.shortest_piece):
        gone[-1] = begin, len(text)
    return gone


def _back(text: bytes, at: int, characters: int) -> int:
    """The byte so many characters before this one."""
    window = text[max(0, at - 4 * characters) : at].decode(errors="ignore")
    return at - len(window[max(0, len(window) - characters) :].encode())


def _on(text: bytes, at: int, characters: int) -> int:
    """The byte so many characters behind this one."""
    return at + len(text[at : at + 4 * characters].decode(errors="ignore")[:characters].encode())


def _is_short(text: bytes, begin: int, end: int, characters: int) -> bool:
    return end - begin < 4 * characters and len(text[begin:end].decode()) < characters
