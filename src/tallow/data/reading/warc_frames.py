"""Where the records of a WARC file begin and end, found so that a damaged one costs no other.

A record is framed by its own length: that in its header, or where it is packed by itself (as the standard recommends,
ISO 28500:2017, annex D) that of its gzip member. Where that cannot be right, the next record is sought by what it must
begin with. What follows from a place depends on nothing before it, so that a file may be cut at the beginning of any
record.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from tallow.data.reading.settings import EXPANSION
from tallow.data.sources import Source

HEADER_BYTES = 2**16
CHUNK_BYTES = 2**16
GZIP = b"\x1f\x8b\x08"
MEMBER_PROBE_BYTES = 512
END = b"\r\n\r\n"
BEGIN = b"WARC/"
BEGINNING = re.compile(rb"WARC/[01]\.\d{1,2}\r?\n[\w-]{1,64}:")
LONGEST_BEGINNING = 80
NEWLINES = re.compile(rb"[\r\n]+")
SHOWN_BYTES = 512
LIES = "cut short, or longer or shorter than its header says"
LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Frame(NamedTuple):
    """A record, or what stands where one should.

    Args:
        offset: Of its first byte; in the file as it lies there, if each record is packed by itself.
        raw: Header and body, unpacked; of a longer one the first bytes.
        reason: Why it cannot be used; empty if it can.
    """

    offset: int
    raw: bytes
    reason: str = ""


def packed_by_record(source: Source) -> bool:
    """Whether each record of a file is a gzip member of its own."""
    if source.path.suffix.lower() != ".gz":
        return False
    with source.reading_errors(), open(source.path, "rb") as file:
        try:
            unpacker = zlib.decompressobj(wbits=31)
            raw = unpacker.decompress(file.read(HEADER_BYTES), HEADER_BYTES)
        except zlib.error:
            return True
    size = record_size(raw)
    return size is None or len(raw) <= size + len(END)


def record_size(raw: bytes) -> int | None:
    """Bytes of the record that begins here, header and body; None if its header does not tell."""
    end = raw.find(END, 0, HEADER_BYTES)
    length = LENGTH.search(raw, 0, end + 2) if raw.startswith(BEGIN) and end >= 0 else None
    return end + len(END) + int(length[1]) if length else None


def members(file: IO[bytes], begin: int, limit: int, keep: bool = True) -> Iterator[Frame]:
    """The records of a file in which each of them is a gzip member.

    Args:
        file: As it lies on disk.
        begin: Where one begins.
        limit: Bytes of a record to keep.
        keep: Whether to keep any.
    """
    offset = begin
    file.seek(offset)
    ahead = b""
    while ahead := ahead or file.read(CHUNK_BYTES):
        unpacker = zlib.decompressobj(wbits=31)
        kept = bytearray()
        taken = total = 0
        reason = ""
        try:
            while not unpacker.eof:
                ahead = ahead or file.read(CHUNK_BYTES)
                if not ahead:
                    reason = "cut short"
                    break
                raw = unpacker.decompress(ahead, CHUNK_BYTES)
                taken += len(ahead)
                ahead = unpacker.unconsumed_tail or unpacker.unused_data
                taken -= len(ahead)
                total += len(raw)
                if keep and len(kept) <= limit:
                    kept += raw
                if total > EXPANSION * limit:
                    reason = f"unpacks to more than {EXPANSION * limit:,} bytes"
                    break
        except zlib.error as error:
            reason = f"damaged ({error})" if taken or total or ahead.startswith(GZIP) else "no record begins here"
        if not reason and total > limit:
            yield Frame(offset, bytes(kept[:limit]), f"longer than {limit:,} bytes")
        else:
            yield Frame(offset, bytes(kept[: limit + 1]), reason)
        if not reason:
            offset += taken
        else:
            found = _next_member(file, offset + 1)
            if found is None:
                return
            offset, ahead = found, b""
            file.seek(offset)


def records(file: IO[bytes], begin: int, limit: int, seekable: bool) -> Iterator[Frame]:
    """The records of a file that is not packed, or packed as a whole.

    Args:
        file: Unpacked, at its beginning.
        begin: Where a record begins.
        limit: Bytes of a record to keep.
        seekable: Whether the file can be sought in; if it is, what is too long is not read.
    """
    stream = _Stream(file, begin, seekable)
    while stream.pass_newlines():
        offset, head = stream.offset, stream.head()
        size = record_size(head)
        if size is None or not BEGINNING.match(head):
            what = "no length in the header" if head.startswith(BEGIN) else "no record begins here"
            yield Frame(offset, head[:SHOWN_BYTES], what)
            stream.skip(1)
        elif size > limit and not seekable:
            if stream.skip(size) == size and stream.may_end(0):
                yield Frame(offset, head, f"longer than {limit:,} bytes")
                continue
            yield Frame(offset, head, LIES)
        elif not stream.may_end(size, ahead=size <= limit):
            yield Frame(offset, head, LIES)
            stream.skip(len(head))
        else:
            longer = f"longer than {limit:,} bytes" if size > limit else ""
            yield Frame(offset, head if longer else stream.see(size), longer)
            stream.skip(size)
            continue
        if not stream.find():
            return


class _Stream:
    """Bytes of which some are seen before they are passed; each is read and searched once, whatever lies ahead says."""

    def __init__(self, file: IO[bytes], begin: int, seekable: bool) -> None:
        self.file, self.seekable = file, seekable
        self._raw = bytearray()
        self._first = self._at = 0  # offset of what is in memory, and the place in it
        self._blank = 0  # before this offset no blank line begins
        if begin:
            self._go(begin)

    @property
    def offset(self) -> int:
        return self._first + self._at

    def see(self, count: int) -> bytes:
        """The next bytes."""
        self._fill(count)
        return bytes(self._raw[self._at : self._at + count])

    def head(self) -> bytes:
        """What is up to the end of the next blank line; if there is none near, the first bytes of it."""
        while True:
            begin = max(self._blank, self.offset) - self._first
            found = self._raw.find(END, begin)
            self._blank = self._first + (found if found >= 0 else max(begin, len(self._raw) - len(END) + 1))
            if found >= 0:
                return self.see(min(found + len(END) - self._at, HEADER_BYTES))
            if len(self._raw) - self._at >= HEADER_BYTES or not self._more():
                return self.see(SHOWN_BYTES)

    def may_end(self, count: int, ahead: bool = True) -> bool:
        """Whether a record may end so many bytes from here.

        Args:
            count: Of bytes.
            ahead: Whether to read up to there; else the file is sought in.
        """
        if ahead or count + len(END) <= len(self._raw) - self._at:
            self._fill(count + len(END))
            place = self._at + count
            return place <= len(self._raw) and not self._raw[place : place + len(END)].strip(b"\r\n")
        at, tail = self.file.tell(), b"."
        if self.offset + count <= self.file.seek(0, 2):
            self.file.seek(self.offset + count)
            tail = self.file.read(len(END))
        self.file.seek(at)
        return not tail.strip(b"\r\n")

    def skip(self, count: int) -> int:
        """Pass over bytes; how many there were."""
        begin = self.offset
        if self.seekable and count > len(self._raw) - self._at:
            self._go(min(begin + count, self.file.seek(0, 2)))
            return self.offset - begin
        while (left := count - (self.offset - begin)) and self._fill(1):
            self._pass(min(left, len(self._raw) - self._at))
        return self.offset - begin

    def pass_newlines(self) -> bool:
        """Pass over the ends of lines; whether anything follows."""
        while self._fill(1):
            found = NEWLINES.match(self._raw, self._at)
            self._pass(found.end() - self._at if found else 0)
            if self._at < len(self._raw):
                return True
        return False

    def find(self) -> bool:
        """Go to where the next record begins; whether there is one."""
        while True:
            if found := BEGINNING.search(self._raw, self._at):
                self._pass(found.start() - self._at)
                return True
            self._pass(max(0, len(self._raw) - self._at - LONGEST_BEGINNING))
            if not self._more():
                return False

    def _pass(self, count: int) -> None:
        self._at += count
        if self._at >= CHUNK_BYTES:
            del self._raw[: self._at]
            self._first, self._at = self.offset, 0

    def _fill(self, count: int) -> bool:
        """Have so many bytes in memory, if there are."""
        while len(self._raw) - self._at < count:
            if not self._more():
                return False
        return True

    def _more(self) -> bool:
        raw = self.file.read(CHUNK_BYTES)
        self._raw += raw
        return bool(raw)

    def _go(self, offset: int) -> None:
        assert self.seekable
        self._raw.clear()
        self._first, self._at = offset, 0
        self.file.seek(offset)


def _next_member(file: IO[bytes], offset: int) -> int | None:
    """Where a gzip member begins in which a record does, at this byte or after it."""
    window = b""
    while True:
        file.seek(offset + len(window))
        raw = file.read(CHUNK_BYTES)
        window += raw
        at = window.find(GZIP)
        while at >= 0:
            file.seek(offset + at)
            try:
                if zlib.decompressobj(wbits=31).decompress(file.read(MEMBER_PROBE_BYTES), len(BEGIN)) == BEGIN:
                    return offset + at
            except zlib.error:
                pass
            at = window.find(GZIP, at + 1)
        if not raw:
            return None
        kept = len(GZIP) - 1
        offset += max(0, len(window) - kept)
        window = window[-kept:]
