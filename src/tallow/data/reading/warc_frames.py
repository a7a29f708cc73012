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
    while True:
        head = stream.read(len(END))
        while head and (gap := len(head) - len(head.lstrip(b"\r\n"))):
            head = head[gap:] + stream.read(gap)
        offset = stream.offset - len(head)
        if not head:
            return
        end = head.find(END)
        while end < 0 and len(head) < HEADER_BYTES and (more := stream.read(min(4096, HEADER_BYTES))):
            head += more
            end = head.find(END)
        size = record_size(head)
        if size is None or not BEGINNING.match(head):
            what = "no length in the header" if head.startswith(BEGIN) else "no record begins here"
            yield Frame(offset, head, what)
            stream.back(head[1:])
        else:
            stream.back(head[end + len(END) :])
            head = head[: end + len(END)]
            if seekable and not stream.may_end(offset + size):  # told by a look there: its bytes are read but once
                yield Frame(offset, head, LIES)
                if not stream.find():
                    return
                continue
            length = size - len(head)
            body = stream.read(min(length, max(0, limit + 1 - len(head))))
            skipped = stream.skip(length - len(body)) if length > len(body) else 0
            tail = stream.read(len(END))
            if len(body) + skipped == length and (tail == END or not tail.strip(b"\r\n")):
                whole = size <= limit
                yield Frame(offset, head + body, "" if whole else f"longer than {limit:,} bytes")
                continue
            yield Frame(offset, head + body, LIES)
            if seekable:
                stream.go(offset + len(head))
            else:
                stream.back(tail if skipped else body + tail)
        if not stream.find():
            return


class _Stream:
    """Bytes that can be put back."""

    def __init__(self, file: IO[bytes], begin: int, seekable: bool) -> None:
        self.file, self.seekable = file, seekable
        self.offset = 0
        self._ahead = b""
        if begin:
            self.go(begin)

    def read(self, count: int) -> bytes:
        raw, self._ahead = self._ahead[:count], self._ahead[count:]
        while len(raw) < count and (more := self.file.read(count - len(raw))):
            raw += more
        self.offset += len(raw)
        return raw

    def back(self, raw: bytes) -> None:
        """Put back what was read last."""
        self._ahead = raw + self._ahead
        self.offset -= len(raw)

    def go(self, offset: int) -> None:
        assert self.seekable
        self._ahead, self.offset = b"", offset
        self.file.seek(offset)

    def may_end(self, offset: int) -> bool:
        """Whether a record may end here; the next byte to be read stays what it is."""
        at = self.offset
        tail = b"."
        if offset <= self.file.seek(0, 2):
            self.file.seek(offset)
            tail = self.file.read(len(END))
        self.go(at)
        return not tail.strip(b"\r\n")

    def skip(self, count: int) -> int:
        """Pass over bytes; how many there were."""
        if self.seekable:
            size = self.file.seek(0, 2)
            count = min(count, size - self.offset)
            self.go(self.offset + count)
            return count
        left = count
        while left and (raw := self.read(min(left, CHUNK_BYTES))):
            left -= len(raw)
        return count - left

    def find(self) -> bool:
        """Go to where the next record begins; whether there is one."""
        window = b""
        while raw := self.read(CHUNK_BYTES):
            window += raw
            if found := BEGINNING.search(window):
                self.back(window[found.start() :])
                return True
            window = window[-LONGEST_BEGINNING:]
        return False


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
