"""PDF: a document is a page.

Words that are hyphenated at the end of a line are joined. Pages that are pictures have no text, and are set aside.
Files are read by a process of their own, which ends where a page takes too long or too much memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from tallow.data.reading import pdf_worker
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, extra
from tallow.data.records import Place, Rejected
from tallow.errors import CapacityError
from tallow.once import once

HYPHEN = re.compile(r"(?<=\w)(?:[\x02\ufffe]\n?|[-\u00ad]\n)(?=[^\W\d_])")
"""PDFium marks what it takes for a hyphen at the end of a line, and removes the end of the line."""

PAGE_CPU_S, MEMORY_BYTES = 20.0, 2 << 30
"""Processor time of a page, and memory of a file, at most."""


def read_pdf(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    """The pages of a file, which is held in memory; their offsets are how many are before them.

    Raises:
        Unusable: The file is damaged, encrypted, or too long, or a page of it takes too much: what follows is not read.
        UsageError: pypdfium2 is not installed.
    """
    extra("pypdfium2", "PDF")
    source, limit = piece.source, settings.max_document_bytes
    with source.open() as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise Unusable(settings.too_long)
    if not raw:
        raise empty()
    with _workers().one() as worker:
        file = worker.begin(raw, limit)
        title = " ".join(file.get("title", "").split())
        metadata = {"title": title} if title else {}
        for index in range(file.get("pages", 0)):
            page = worker.answer(f"page {index + 1}")
            if "error" in page:
                rejected.add(Place(source, "page", index + 1, index), page["error"], b"")
            elif text := _joined(page["text"]):
                yield Text(text, index, {**metadata, "page": str(index + 1)})
            else:
                rejected.note("blank page of PDF left out")
    if file.get("encrypted"):
        raise Unusable("is encrypted", "save it without a password")
    if "damaged" in file:
        raise Unusable(f"is damaged ({file['damaged']})", "fetch or make it again")


def _joined(text: str) -> str:
    text = HYPHEN.sub("", text.replace("\r\n", "\n"))
    return text.replace("\x02", "-").replace("\ufffe", "-").strip()


class _Worker:
    """A process that reads one file after another."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", pdf_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for tallow alone
            )
        except OSError as error:
            raise CapacityError(f"no process can be started: {error.strerror}", "end some others") from error

    def begin(self, raw: bytes, limit: int) -> dict[str, Any]:
        """Hand it a file; what it says of that."""
        assert self._process.stdin is not None
        job = {"bytes": len(raw), "limit": limit, "cpu_s": PAGE_CPU_S, "memory_bytes": MEMORY_BYTES}
        self._process.stdin.write(json.dumps(job).encode() + b"\n" + raw)
        self._process.stdin.flush()
        return self.answer("the file")

    def answer(self, what: str) -> dict[str, Any]:
        """What it says next.

        Raises:
            Unusable: It has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise Unusable(
                f"{what} takes more than {PAGE_CPU_S:g} s or {MEMORY_BYTES >> 20:,} MB, or breaks the reader"
            )
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class _Workers:
    """As many as threads read PDFs at the same time; they wait for the next file until this process ends."""

    def __init__(self) -> None:
        self._free: SimpleQueue[_Worker] = SimpleQueue()

    @contextmanager
    def one(self) -> Iterator[_Worker]:
        try:
            worker = self._free.get_nowait()
        except Empty:
            worker = _Worker()
        done = False
        try:
            yield worker
            done = True
        finally:  # one that was left in the middle of a file is of no use any more
            if done:
                self._free.put(worker)
            else:
                worker.close()


@once()
def _workers() -> _Workers:
    return _Workers()
