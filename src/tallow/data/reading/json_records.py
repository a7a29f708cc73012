"""JSON: an object on each line, or an array of objects."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from tallow.data.reading.encodings import BOM, decode
from tallow.data.reading.lines import lines
from tallow.data.reading.settings import EXPANSION, Piece, ReadSettings, Unusable, binary, empty, refuse_wide
from tallow.data.records import Place, Record, Rejected
from tallow.data.sources import Source

PROBE_BYTES = 8192


def read_json(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Record]:
    """The objects of a JSON file; one that begins as an array is held in memory as a whole."""
    refuse_wide(piece.source, settings.json_encoding)
    if piece.source.kind == "json" and _begins_as_array(piece.source):
        return _elements(piece.source, settings, rejected)
    return _lines(piece, settings, rejected)


def has_lines(source: Source, settings: ReadSettings) -> bool:
    """Whether a file is read line by line, and is not set aside as a whole for what it begins with."""
    if source.kind == "json" and _begins_as_array(source):
        return False
    try:
        next(_lines(Piece(source), settings, Rejected()), None)
    except Unusable:
        return False
    return True


def _lines(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Record]:
    source = piece.source
    nothing = True
    with source.open() as stream:
        for line in lines(stream, piece, settings.max_document_bytes):
            if line.offset == 0 and b"\0" in line.raw[:PROBE_BYTES]:
                raise binary()
            if line.blank:
                continue
            place = Place(source, "line", line.number, line.offset)
            try:
                record = Record(place, _parse(line.raw, settings))
            except Unusable as reason:
                if nothing and piece == Piece(source) and source.kind == "json":  # such as one object over many lines
                    raise Unusable(
                        f"is neither a JSON array nor JSON lines (line {line.number}: {reason})",
                        "make it an array of objects, or write one object on each line; "
                        f"records in a field come out by: jq -c '.FIELD[]' {source.path} > records.jsonl",
                    ) from None
                rejected.add(place, str(reason), line.raw)
            else:
                yield record
            nothing = False
    if nothing and piece == Piece(source):
        raise empty()


def _begins_as_array(source: Source) -> bool:
    with source.open() as stream:
        return stream.read(PROBE_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _elements(source: Source, settings: ReadSettings, rejected: Rejected) -> Iterator[Record]:
    limit = EXPANSION * settings.max_document_bytes
    with source.open() as stream:
        raw = stream.read(limit + 1) if source.packed else stream.read()
    if source.packed and len(raw) > limit:
        raise Unusable(f"unpacks to a JSON array of more than {limit:,} bytes", "write one object on each line")
    text = decode(raw, settings.json_encoding)
    try:
        elements = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"begins as a JSON array, but is not valid JSON ({error})", "fetch or make it again") from error
    if not elements:
        raise empty()
    for index, element in enumerate(elements):
        place = Place(source, "record", index + 1, index)
        try:
            record = Record(place, _object(element))
        except Unusable as reason:
            rejected.add(place, str(reason), json.dumps(element).encode())
        else:
            yield record


def _parse(raw: bytes, settings: ReadSettings) -> dict[str, Any]:
    """One JSON object from one line."""
    if len(raw) > settings.max_document_bytes:
        raise Unusable(settings.too_long)
    try:
        value = json.loads(raw.decode(settings.json_encoding).removeprefix(BOM))
        return _object(value, escapes=b"\\u" in raw)
    except UnicodeDecodeError:
        raise Unusable(f"not {settings.json_encoding} text") from None
    except RecursionError:
        raise Unusable("nested too deeply") from None
    except ValueError as error:
        raise Unusable(f"not JSON ({error})") from None


def _object(value: Any, escapes: bool = True) -> dict[str, Any]:
    """A JSON value that is an object of whole characters."""
    if not isinstance(value, dict):
        raise Unusable("not a JSON object")
    if escapes:  # only an escape can smuggle in half a surrogate pair, which is not a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unusable("half a surrogate pair in a string") from None
    return value
