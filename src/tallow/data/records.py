"""Records of raw files: where each stands, and which are set aside."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tallow.data.sources import Source
from tallow.errors import DataError, writing

REJECTED_BYTES = 200
LISTED = 10_000
"""Bad records that are kept as such; of files that give more these are enough to see what is wrong."""
ENDED_EARLY = "file ended early: "
"""Begins the note of a file that gave something before it turned out to be damaged; its name follows."""


@dataclass(frozen=True)
class Place:
    """Where a record stands.

    Args:
        source: The file.
        unit: What is counted in it: lines of text, JSON lines and CSV, rows of parquet, records of a JSON array, pages
            of PDF; or it is the file as a whole, or bytes of WARC.
        number: Which one it is, from 1; None where nobody has counted, as within a piece of a file.
        offset: Of lines and CSV the byte offset in the unpacked file, of WARC in the file as it lies there if each
            record is packed by itself; of a row, record or page how many are before it.
    """

    source: Source
    unit: Literal["line", "row", "record", "page", "byte", "file"]
    number: int | None
    offset: int

    def __str__(self) -> str:
        if self.unit == "file":
            return self.source.name
        if self.number is None:
            return f"{self.source.name}, byte {self.offset:,}"
        return f"{self.source.name}, {self.unit} {self.number}"


@dataclass(frozen=True)
class Record:
    """A JSON object or a row, and where it stands."""

    place: Place
    fields: dict[str, Any]


class Rejected:
    """Counts good records and bad ones, and keeps the bad ones in a JSONL file.

    Args:
        path: Where bad records go (`source`; `offset`; `line`, or the number of the row, record or page, where it is
            known; `reason`; `start`: the first bytes); None: nowhere.
        records: Gets them, too: the first `LISTED`, and files of which the rest could not be read.
    """

    def __init__(self, path: Path | None = None, records: list[dict[str, Any]] | None = None) -> None:
        self.path, self.records = path, records
        self.good = 0
        self.bad = 0
        self.first = ""
        self.hint = ""
        self.notes: Counter[str] = Counter()

    def add(self, place: Place, reason: str, raw: bytes, hint: str = "") -> None:
        """Set aside the record at `place`; the hint says what can be done about it."""
        self.bad += 1
        if not self.first:
            self.first, self.hint = f"{place}: {reason}", hint
        start = raw[:REJECTED_BYTES].decode("utf-8", errors="backslashreplace")
        record = {
            "source": place.source.name,
            "offset": place.offset,
            **({} if place.number is None else {"line": place.number}),
            "reason": reason,
            "start": start,
        }
        if self.records is not None and (len(self.records) < LISTED or place.unit == "file"):
            self.records.append(record)
        if self.path is not None:
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def end(self, source: Source, offset: int, reason: str, hint: str, began: bool) -> None:
        """Set aside a file, or what is left of it.

        Args:
            source: The file.
            offset: Where its piece begins.
            reason: Why.
            hint: What can be done about it.
            began: Whether something before was good, so that nobody sees by the count how much is lost.
        """
        self.add(Place(source, "file", None, offset), reason, b"", hint)
        if began:
            self.note(f"{ENDED_EARLY}{source.name}")

    def note(self, decision: str) -> None:
        """Count what a reader has decided on or left out, of which nothing is wrong."""
        self.notes[decision] += 1

    def check(self, max_bad_fraction: float) -> None:
        """Say whether what was read is good enough.

        Raises:
            DataError: Nothing good was read, or too large a share was bad.
        """
        total = self.good + self.bad
        if self.bad and (self.good == 0 or self.bad > max_bad_fraction * total):
            mend = self.hint or "mend the data"
            raise DataError(
                f"{self.bad:,} of {total:,} records cannot be used (first: {self.first})",
                f"{mend}, or allow more with max_bad_fraction" if self.good else mend,
            )
