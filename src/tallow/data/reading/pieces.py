"""Files cut into ranges that several processes can read: together the same documents, ids and order as in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tallow.data.reading.encodings import has_encoding
from tallow.data.reading.json_records import has_lines
from tallow.data.reading.settings import Piece, ReadSettings
from tallow.data.reading.warc import frames
from tallow.data.reading.warc_frames import packed_by_record
from tallow.data.sources import Source
from tallow.errors import reading

PIECE_BYTES = 2**26


def cut(sources: Iterable[Source], settings: ReadSettings, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Pieces of about equal size, in the order of the sources.

    Cut are JSON lines, text in paragraphs or lines (at any byte: whoever reads a piece finds its first line), parquet
    (between row groups) and WARC (at the beginning of a record: the file is walked through, which unpacks it if it is
    packed). Whole stay files that are a document or an array, CSV (whether a newline is quoted depends on all before
    it), and what is packed as one stream.

    Raises:
        DataError: A file cannot be read.
    """
    for source in sources:
        with reading(source.path, "data file"):
            size = source.path.stat().st_size
        starts = [0]
        if size > piece_bytes and _divisible(source, settings):
            if source.kind == "warc":
                starts += _record_starts(source, settings, piece_bytes)
            else:
                starts += range(piece_bytes, size, piece_bytes)
        for begin, end in zip(starts, [*starts[1:], None], strict=True):
            yield Piece(source, begin, end)


def _divisible(source: Source, settings: ReadSettings) -> bool:
    match source.kind:
        case "text" | "markdown":
            return settings.split != "whole" and not source.packed and has_encoding(source, settings)
        case "jsonl" | "json":
            return not source.packed and has_lines(source, settings)
        case "warc":
            return not source.packed or packed_by_record(source)
        case kind:
            return kind == "parquet"


def _record_starts(source: Source, settings: ReadSettings, piece_bytes: int) -> Iterator[int]:
    """The first record of each stretch of `piece_bytes` after the first."""
    due = piece_bytes
    for frame in frames(Piece(source), settings.max_document_bytes, keep=False):
        if frame.offset >= due:
            yield frame.offset
            due = (frame.offset // piece_bytes + 1) * piece_bytes
