"""The lines or paragraphs of texts, and what each is known by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.classes import class_places

UnitKind = Literal["line", "paragraph"]
"""A line ends with a line feed; lines with nothing but white space part paragraphs."""

HASH_BYTES = 16


class Units(NamedTuple):
    """Units of texts, in their order.

    Args:
        rows: The text that each is of.
        begins: What goes if the unit does: from this byte …
        ends: … to this one. That is the unit and what parts it from the next one; the last unit of a text goes with
            what parts it from the one before, if no line feed ends it (the last paragraph also if one does). So only
            where all units at the end of a text go does one such separator stay.
        hashes_U2: BLAKE2b of 16 bytes of the unit, its white space (`str.split`) one space each and none at its ends.
            Two words, the first one the more significant.
    """

    rows: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    hashes_U2: npt.NDArray[np.uint64]


class _Unit(NamedTuple):
    text: str
    begin: int
    end: int


def find_units(texts: pa.StringArray, kind: UnitKind, min_chars: int) -> Units:
    """Units with at least so many characters (one or more), white space counted as it is hashed."""
    assert min_chars >= 1
    extension = native() if prefers_fast() else None
    if extension is not None:
        flat, words = extension.find_units(places(texts), class_places(), kind == "paragraph", min_chars)
        rows, begins, ends = np.ascontiguousarray(flat.reshape(-1, 3).T)
        return Units(rows, begins, ends, words.reshape(-1, 2))
    found: list[tuple[int, int, int]] = []
    digests: list[bytes] = []
    for row, text in enumerate(texts.to_pylist()):
        for unit in (_lines if kind == "line" else _paragraphs)(text or ""):
            plain = " ".join(unit.text.split())
            if len(plain) >= min_chars:
                found.append((row, unit.begin, unit.end))
                digests.append(hashlib.blake2b(plain.encode(), digest_size=HASH_BYTES).digest())
    rows, begins, ends = np.array(found, dtype=np.int32).reshape(-1, 3).T
    return Units(rows, begins, ends, np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2))


def _lines(text: str) -> Iterator[_Unit]:
    """Lines, each with the line feed behind it; one that ends without goes with the line feed before it."""
    at = 0
    for line in _cut_lines(text):
        end = at + len(line.encode())
        yield _Unit(line, at if line.endswith("\n") or at == 0 else at - 1, end)
        at = end


def _paragraphs(text: str) -> Iterator[_Unit]:
    """Runs of lines that are not blank, each up to where the next one begins; the last one from the end of another."""
    runs: list[_Unit] = []
    at, is_open = 0, False
    for line in _cut_lines(text):
        end = at + len(line.removesuffix("\n").encode())
        if not line.strip():
            is_open = False
        elif is_open:
            runs[-1] = _Unit(runs[-1].text + line, runs[-1].begin, end)
        else:
            runs.append(_Unit(line, at, end))
            is_open = True
        at += len(line.encode())
    for number, run in enumerate(runs):
        if number + 1 < len(runs):
            yield _Unit(run.text, run.begin, runs[number + 1].begin)
        else:
            yield _Unit(run.text, runs[number - 1].end if number else run.begin, run.end)


def _cut_lines(text: str) -> list[str]:
    """Lines with the line feeds that end them."""
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + [last] * bool(last)
