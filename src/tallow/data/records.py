"""Records of raw files: where each stands, and which are set aside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tallow.data.sources import Source
from tallow.errors import DataError, writing

REJECTED_BYTES = 200


@dataclass(frozen=True)
class Place:
    """Where a record stands.

    Args:
        source: The file.
        unit: What is counted in it: lines of text and JSON lines, rows of parquet, records of a JSON array.
        number: Which one it is, from 1.
        offset: Byte offset in the unpacked file; of a row or record how many are before it.
    """

    source: Source
    unit: Literal["line", "row", "record"]
    number: int
    offset: int

    def __str__(self) -> str:
        return f"{self.source.name}, {self.unit} {self.number}"


@dataclass(frozen=True)
class Record:
    """A JSON object or a row, and where it stands."""

    place: Place
    fields: dict[str, Any]


class Rejected:
    """Counts good records and bad ones, and keeps the bad ones in a JSONL file.

    Args:
        path: Where bad records go (`source`; `line`, or the number of the row or record; `reason`; `start`: the
            first bytes); None: nowhere.
        records: Gets them, too.
    """

    def __init__(self, path: Path | None = None, records: list[dict[str, Any]] | None = None) -> None:
        self.path, self.records = path, records
        self.good = 0
        self.bad = 0
        self.first = ""

    def add(self, place: Place, reason: str, raw: bytes) -> None:
        """Set aside the record at `place`."""
        self.bad += 1
        self.first = self.first or f"{place}: {reason}"
        start = raw[:REJECTED_BYTES].decode("utf-8", errors="backslashreplace")
        record = {"source": place.source.name, "line": place.number, "reason": reason, "start": start}
        if self.records is not None:
            self.records.append(record)
        if self.path is not None:
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def check(self, max_bad_fraction: float) -> None:
        """Say whether what was read is good enough.

        Raises:
            DataError: Nothing good was read, or too large a share was bad.
        """
        total = self.good + self.bad
        if self.bad and (self.good == 0 or self.bad > max_bad_fraction * total):
            raise DataError(
                f"{self.bad:,} of {total:,} records cannot be used (first: {self.first})",
                "mend the data, or allow more with max_bad_fraction" if self.good else "mend the data",
            )
