"""Edits of texts: which bytes are replaced by what. Several kinds are found apart and made together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.compute import call_function

EDITS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("text", pa.string())]))
"""Beside each text: ranges of its bytes in UTF-8, and what replaces them; null or none: it stays as it is."""

TOGETHER = 256
"""Texts that are edited at a time, as Python's objects take more memory than what they say."""


class Edit(NamedTuple):
    """The bytes from `start` to before `end` are replaced by `text`, or cut out if that is empty."""

    start: int
    end: int
    text: str


def make_edits(texts: pa.StringArray, edits: Sequence[pa.Array]) -> pa.StringArray:
    """Make all edits of some arrays as `EDITS`.

    One that is within another is left out; two that overlap otherwise become one, with the text of the first one that
    has any.
    """
    touched = changed_rows(edits, len(texts))
    rows = np.flatnonzero(touched)
    if not len(rows):
        return texts
    changed = pa.concat_arrays(
        [_edited(texts, edits, rows[begin : begin + TOGETHER]) for begin in range(0, len(rows), TOGETHER)]
    )
    return call_function("replace_with_mask", [texts, pa.array(touched), changed])


def _edited(texts: pa.StringArray, edits: Sequence[pa.Array], rows: npt.NDArray[np.int64]) -> pa.StringArray:
    chosen = pa.array(rows)
    lists = [column.take(chosen).to_pylist() for column in edits]
    changed = [
        edited(text, [Edit(**edit) for found in beside for edit in found or ()])
        for text, *beside in zip(texts.take(chosen).to_pylist(), *lists, strict=True)
    ]
    return pa.array(changed, pa.string())


def changed_rows(edits: Sequence[pa.Array], count: int) -> npt.NDArray[np.bool_]:
    """Which of so many texts have an edit."""
    touched = np.zeros(count, dtype=np.bool_)
    for column in edits:
        touched |= call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False) > 0
    return touched


def edited(text: str, edits: Iterable[Edit]) -> str:
    """A text with some edits made."""
    raw, parts, end = text.encode(), list[bytes](), 0
    for edit in united(edits):
        parts += [raw[end : edit.start], edit.text.encode()]
        end = edit.end
    return b"".join([*parts, raw[end:]]).decode()


def united(edits: Iterable[Edit]) -> list[Edit]:
    """The same edits in their order, those that overlap as one."""
    result: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, -edit.end)):
        last = result[-1] if result else None
        if last is None or edit.start >= last.end:
            result.append(edit)
        elif edit.end > last.end:
            result[-1] = Edit(last.start, edit.end, last.text or edit.text)
    return result
