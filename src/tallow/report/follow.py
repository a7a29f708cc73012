"""The records of a file that grows, read without ever reading much: of a huge file a sample, and all of its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tallow.errors import reading

WHOLE_BYTES = 4 << 20
END_BYTES = 256 << 10
SAMPLES, SAMPLE_BYTES = 256, 8 << 10
LINE_BYTES = 64 << 10

Record = dict[str, Any]


class Follower:
    """Reads JSON lines as they come; a line that is not whole yet, or broken, is passed over.

    Args:
        path: The file; it may not be there yet, and may be replaced by another one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._place = 0

    def read(self) -> tuple[list[Record], bool]:
        """The records since the last call, and whether they are to replace those from before."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            is_new, self._file = self._file is not None, None
            return [], is_new
        is_new = self._file != (found.st_dev, found.st_ino) or found.st_size < self._place
        if not is_new and found.st_size == self._place:
            return [], False
        with reading(self.path, "file"), open(self.path, "rb") as file:
            if is_new:
                self._file, self._place = (found.st_dev, found.st_ino), 0
            records = list(self._sample(file, found.st_size)) if found.st_size - self._place > WHOLE_BYTES else []
            records += self._read_on(file)
        return records, is_new

    def _sample(self, file: BinaryIO, size: int) -> Iterator[Record]:
        """Records from all over what is new, up to where the end begins, which is read next."""
        start, stop = self._place, size - END_BYTES
        for number in range(SAMPLES):
            file.seek(start + (stop - start) * number // SAMPLES)
            lines = file.read(SAMPLE_BYTES).split(b"\n")
            yield from _parse(lines[1:-1][:1])
        self._place = _next_line(file, stop)

    def _read_on(self, file: BinaryIO) -> Iterator[Record]:
        file.seek(self._place)
        whole, newline, _ = file.read(WHOLE_BYTES).rpartition(b"\n")
        self._place += len(whole) + len(newline)
        yield from _parse(whole.split(b"\n"))


def _next_line(file: BinaryIO, place: int) -> int:
    """Where the first line behind a place begins, or the place itself if it is far."""
    file.seek(place)
    line = file.readline(LINE_BYTES)
    return place + len(line) if line.endswith(b"\n") else place


def _parse(lines: list[bytes]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def age_s(path: Path, now: float) -> float | None:
    """Seconds since a file was written, if it is there."""
    try:
        return max(0.0, now - os.stat(path).st_mtime)
    except OSError:
        return None
