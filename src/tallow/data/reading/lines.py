"""Lines and paragraphs of a range of bytes.

A line belongs to the piece in which its first byte is, and a paragraph to that in which its first line is; so ranges
that share a file, cut at whatever bytes, give each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from tallow.data.reading.settings import EXPANSION, Piece, Unusable

CHUNK_BYTES = 2**16


class Line(NamedTuple):
    """A line or paragraph without its end.

    Args:
        number: From 1; None in a piece that does not begin with the file, where nobody has counted.
        offset: Byte offset in the unpacked file.
        raw: What is in it, of which at most `limit` + 1 bytes are kept.
        blank: Whether all of it is white space.
    """

    number: int | None
    offset: int
    raw: bytes
    blank: bool = False


def lines(stream: IO[bytes], piece: Piece, limit: int, start: int = 0, bounded: bool = True) -> Iterator[Line]:
    """The lines of a piece.

    Args:
        stream: At the beginning of the unpacked file.
        piece: Of a plain file, unless it is the whole.
        limit: Bytes of a line to keep.
        start: Where the first line begins.
        bounded: Whether to end where the piece does.

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
        yield Line(number, offset, raw.rstrip(b"\r\n")[: limit + 1], blank)
        offset += length


def paragraphs(stream: IO[bytes], piece: Piece, limit: int, start: int = 0) -> Iterator[Line]:
    """Lines joined up to the next blank one, of which at most `limit` + 1 bytes are kept; arguments as of `lines`."""
    inside = piece.begin > start and not _after_blank(stream, piece)
    first: Line | None = None
    kept: list[bytes] = []
    length = 0
    for line in lines(stream, piece, limit, start, bounded=False):
        if line.blank:
            if first:
                yield first._replace(raw=b"\n".join(kept)[: limit + 1])
            first, inside = None, False
            if not piece.holds(line.offset):
                return
        elif not inside:
            if first is None:
                if not piece.holds(line.offset):
                    return
                first, kept, length = line, [], 0
            if length <= limit:
                kept.append(line.raw)
                length += len(line.raw) + 1
        elif not piece.holds(line.offset):
            return
    if first:
        yield first._replace(raw=b"\n".join(kept)[: limit + 1])


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
