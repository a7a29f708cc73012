"""Lines and paragraphs of a range of bytes.

A line belongs to the piece in which its first byte is, and a paragraph to that in which its first line is; so ranges
that share a file, cut at whatever bytes, give each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol, cast

import numpy as np

from tallow.data.reading.settings import EXPANSION, Piece, Unusable

CHUNK_BYTES = 2**16
NEWLINE = ord("\n")


class Line(NamedTuple):
    """A line, blank lines one after another, or a paragraph, without the end.

    Args:
        number: From 1; None in a piece that does not begin with the file, where nobody has counted.
        offset: Byte offset in the unpacked file.
        raw: What is in it, of which at most `limit` + 1 bytes are kept.
        blank: Whether all of it is white space.
        lines: How many; of a paragraph 1.
    """

    number: int | None
    offset: int
    raw: bytes
    blank: bool = False
    lines: int = 1


class _Peeked(Protocol):
    """What `Source.open` gives."""

    def peek(self, size: int, /) -> bytes: ...
    def read(self, size: int, /) -> bytes: ...


def lines(
    stream: IO[bytes], piece: Piece, limit: int, start: int = 0, bounded: bool = True, keep_blank: bool = False
) -> Iterator[Line]:
    """The lines of a piece; blank ones that follow one another come together.

    Args:
        stream: At the beginning of the unpacked file.
        piece: Of a plain file, unless it is the whole.
        limit: Bytes of a line to keep.
        start: Where the first line begins.
        bounded: Whether to end where the piece does.
        keep_blank: Whether it matters what is in blank lines.

    Raises:
        Unusable: A line of a packed file goes on and on.
    """
    if piece.begin <= start:
        number, offset = stream.read(start).count(b"\n"), start
    else:
        number, offset = None, _first_line(stream, piece)
        if offset is None:
            return
    while (not bounded or piece.holds(offset)) and (raw := stream.readline(limit + 2)):
        number = None if number is None else number + 1
        length, blank = len(raw), not raw.strip()
        while not raw.endswith(b"\n") and (rest := stream.readline(CHUNK_BYTES)):
            length += len(rest)
            blank = blank and not rest.strip()
            if rest.endswith(b"\n"):
                break
            if piece.source.packed and length > EXPANSION * limit:
                raise Unusable(f"unpacks to a line of more than {length:,} bytes; what follows is not read")
        line = Line(number, offset, raw.rstrip(b"\r\n")[: limit + 1], blank)
        offset += length
        if blank:
            more, length, kept = _blank_lines(cast(_Peeked, stream), piece, offset, limit if keep_blank else 0)
            line = line._replace(raw=(line.raw + kept)[: limit + 1], lines=1 + more)
            number = None if number is None else number + more
            offset += length
        yield line


def _blank_lines(stream: _Peeked, piece: Piece, offset: int, limit: int) -> tuple[int, int, bytes]:
    """Pass over the blank lines that follow one and begin in the piece, many at once.

    Returns:
        How many, their bytes, and what is in them with the end of the line before; of that about as much as the limit.
    """
    count = length = 0
    kept = bytearray()
    while piece.holds(offset + length) and (ahead := stream.peek(CHUNK_BYTES)):
        end = ahead.rfind(b"\n", 0, len(ahead) - len(ahead.lstrip())) + 1
        if not end:
            break
        if len(kept) < limit:
            kept += b"\n" + ahead[:end].replace(b"\r\n", b"\n")[:-1]
        count += int(np.count_nonzero(np.frombuffer(ahead, np.uint8, end) == NEWLINE))  # bytes.count is slow if many
        length += end
        stream.read(end)
        if end < len(ahead):
            break
    return count, length, bytes(kept)


def paragraphs(stream: IO[bytes], piece: Piece, limit: int, start: int = 0) -> Iterator[Line]:
    """Lines joined up to the next blank one, of which at most `limit` + 1 bytes are kept; arguments as of `lines`."""
    inside = piece.begin > start and not _after_blank(stream, piece)
    first: Line | None = None
    kept = bytearray()
    for line in lines(stream, piece, limit, start, bounded=False):
        if line.blank:
            if first:
                yield first._replace(raw=bytes(kept[: limit + 1]))
            first, inside = None, False
            if not piece.holds(line.offset):
                return
        elif not inside:
            if first is None:
                if not piece.holds(line.offset):
                    return
                first, kept = line, bytearray(line.raw)
            elif len(kept) <= limit:
                kept += b"\n" + line.raw
        elif not piece.holds(line.offset):
            return
    if first:
        yield first._replace(raw=bytes(kept[: limit + 1]))


def _first_line(stream: IO[bytes], piece: Piece) -> int | None:
    """Go to the first line that begins in the piece; where that is, if there is one."""
    offset = piece.begin - 1  # a newline there ends the line before
    stream.seek(offset)
    while piece.holds(offset) and (rest := stream.readline(CHUNK_BYTES)):
        offset += len(rest)
        if rest.endswith(b"\n"):
            return offset if piece.holds(offset) else None
    return None


def _after_blank(stream: IO[bytes], piece: Piece) -> bool:
    """Whether a blank line stands before the first line that begins in the piece."""
    start = _first_line(stream, piece)
    end = 0 if start is None else start - 1  # the newline
    while end > 0:
        begin = max(0, end - CHUNK_BYTES)
        stream.seek(begin)
        _, newline, last = stream.read(end - begin).rpartition(b"\n")
        if last.strip():
            return False
        if newline:
            return True
        end = begin
    return True
