from __future__ import annotations

import gzip
import io
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.reading.conftest import Read

from tallow.data.read import Document, Piece, ReadSettings, cut, read_piece
from tallow.data.reading import warc_frames
from tallow.data.reading.warc import frames
from tallow.data.reading.warc_frames import records
from tallow.data.records import Rejected
from tallow.data.sources import find_sources


def record(
    body: bytes, kind: str = "response", media: str = "application/http; msgtype=response", length: int = 0
) -> bytes:
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://example.org/{len(body)}\r\n"
            f"WARC-Date: 2026-01-02T03:04:05Z\r\nWARC-Record-ID: <urn:uuid:0>\r\nContent-Type: {media}\r\n"
            f"Content-Length: {length or len(body)}\r\n\r\n"
        ).encode()
        + body
        + b"\r\n\r\n"
    )


def http(body: bytes, media: str = "text/html; charset=utf-8", status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{more}\r\n".encode() + body


def page(number: int) -> bytes:
    return f"<html><head><title>Page {number}</title></head><body><p>Text of page {number}.</p></body></html>".encode()


def archive(*records: bytes, packed: bool) -> tuple[bytes, list[int]]:
    """A file, and where each of its records begins."""
    starts, raw = [], b""
    for one in records:
        starts.append(len(raw))
        raw += gzip.compress(one, mtime=0) if packed else one
    return raw, starts


INFO = record(b"software: test\r\n", "warcinfo", "application/warc-fields")
RECORDS = [
    INFO,
    record(b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request"),
    *[record(http(page(number))) for number in range(4)],
    record(http(b"\x89PNG", "image/png")),
    record(http(page(9), status="404 Not Found")),
    record(http("Zażółć".encode("iso-8859-2"), "text/plain; charset=iso-8859-2")),
    record(b"Extracted text.", "conversion", "text/plain"),
]
TEXTS = [f"Text of page {number}." for number in range(4)] + ["Zażółć", "Extracted text."]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_and_texts_are_read(tmp_path: Path, read: Read, rejected: Rejected, name: str) -> None:
    raw, starts = archive(*RECORDS, packed=name.endswith("gz"))
    (tmp_path / name).write_bytes(raw)
    documents = read(tmp_path / name)
    assert [document.text for document in documents] == TEXTS
    assert [document.offset for document in documents] == [starts[index] for index in (2, 3, 4, 5, 8, 9)]
    assert documents[0].metadata == {
        "url": f"http://example.org/{len(http(page(0)))}",
        "date": "2026-01-02T03:04:05Z",
        "title": "Page 0",
    }
    assert rejected.bad == 0
    assert rejected.notes == {
        "WARC record left out: warcinfo": 1,
        "WARC record left out: request": 1,
        "WARC record left out: neither HTML nor plain text": 1,
        "WARC record left out: status is not 200": 1,
        "read as iso8859-2": 1,
    }


def test_files_packed_as_a_whole(tmp_path: Path, read: Read) -> None:
    raw, starts = archive(*RECORDS, packed=False)
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(raw))
    with pa.OSFile(str(tmp_path / "b.warc.zst"), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(raw)
    for name in ("a.warc.gz", "b.warc.zst"):
        documents = read(tmp_path / name)
        assert [document.text for document in documents] == TEXTS
        assert documents[0].offset == starts[2]


@pytest.mark.parametrize("coding", ["chunked", "gzip"])
def test_what_http_has_packed_is_unpacked(tmp_path: Path, read: Read, coding: str) -> None:
    body = page(1)
    if coding == "chunked":
        answer = http(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), more="Transfer-Encoding: chunked\r\n")
    else:
        answer = http(gzip.compress(body), more="Content-Encoding: gzip\r\n")
    (tmp_path / "a.warc").write_bytes(record(answer))
    (document,) = read(tmp_path / "a.warc")
    assert document.text == "Text of page 1."


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize(
    "bad",
    [
        b"no record at all, but some line\r\nof text\r\n\r\n",
        record(http(page(5)), length=20),
        record(http(page(5)), length=100_000),
        record(http(page(5)))[:-60],
        record(http(page(5))).replace(b"Content-Length:", b"Content-Size:"),
        record(http(page(5))).replace(b"HTTP/1.1 200", b"Hello"),
        record(http(b"\0\1\2")),
        record(http(b"<b>" * 1000)),
        record(http(gzip.compress(bytes(10**6)), more="Content-Encoding: gzip\r\n")),
    ],
    ids=["junk", "short", "long", "cut", "no length", "no http", "binary", "deep", "bomb"],
)
def test_a_bad_record_costs_no_other(tmp_path: Path, read: Read, rejected: Rejected, name: str, bad: bytes) -> None:
    before, after = [INFO, record(http(page(1)))], [record(http(page(2))), record(http(page(3)))]
    raw, starts = archive(*before, bad, *after, packed=name.endswith("gz"))
    (tmp_path / name).write_bytes(raw)
    documents = read(tmp_path / name, max_document_bytes=5000)
    assert [document.text for document in documents] == [f"Text of page {number}." for number in (1, 2, 3)]
    assert [document.offset for document in documents] == [starts[1], starts[3], starts[4]]
    assert rejected.bad == 1
    assert f"byte {starts[2]:,}" in rejected.first


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros", "not gzip"])
def test_a_damaged_member_costs_no_other(tmp_path: Path, read: Read, rejected: Rejected, damage: str) -> None:
    raw, starts = archive(INFO, *[record(http(page(number))) for number in range(4)], packed=True)
    begin, end = starts[2], starts[3]
    middle = (begin + end) // 2
    bad = {
        "flipped": raw[begin:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 : end],
        "cut": raw[begin:middle],
        "zeros": raw[begin:middle] + bytes(end - middle),
        "not gzip": b"x" * 20,
    }[damage]
    (tmp_path / "a.warc.gz").write_bytes(raw[:begin] + bad + raw[end:])
    texts = [document.text for document in read(tmp_path / "a.warc.gz")]
    assert texts == [f"Text of page {number}." for number in (0, 2, 3)]
    assert rejected.bad >= 1


def test_a_bomb_is_not_unpacked(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    bomb = gzip.compress(record(http(bytes(3_000_000))))
    raw, _ = archive(INFO, record(http(page(1))), packed=True)
    last = gzip.compress(record(http(page(2))))
    (tmp_path / "a.warc.gz").write_bytes(raw + bomb + last)
    assert [document.text for document in read(tmp_path / "a.warc.gz", max_document_bytes=10_000)] == [
        "Text of page 1.",
        "Text of page 2.",
    ]
    assert "unpacks to more than 160,000 bytes" in rejected.first


def documents_of(pieces: list[Piece]) -> list[Document]:
    return [document for piece in pieces for document in read_piece(piece, ReadSettings(), Rejected())]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "whole.warc.gz"])
def test_cut_at_every_record(tmp_path: Path, name: str) -> None:
    inner, _ = archive(INFO, record(http(page(7))), packed=True)  # must not be taken for records of the outer file
    records = [*RECORDS, record(http(inner, "application/octet-stream")), record(http(page(8)))]
    raw, starts = archive(*records, packed=name == "a.warc.gz")
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.startswith("whole") else raw)
    (source,) = find_sources([tmp_path / name])
    whole = documents_of([Piece(source)])
    assert len(whole) == len(TEXTS) + 1
    if name.startswith("whole"):
        assert list(cut([source], ReadSettings(), 1)) == [Piece(source)]
        return
    assert [frame.offset for frame in frames(Piece(source), 1000, keep=False)] == starts
    for piece_bytes in (1, 100, 777, 2000, len(raw)):
        pieces = list(cut([source], ReadSettings(), piece_bytes))
        assert {piece.begin for piece in pieces} <= set(starts)
        assert documents_of(pieces) == whole
    assert len(list(cut([source], ReadSettings(), 1))) == len(starts)


@given(damage=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=12)), max_size=3), packed=st.booleans())
def test_damage_anywhere(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]], packed: bool
) -> None:
    """Whatever the damage, pieces cut at what the walk finds give what the whole gives, and nothing else is raised."""
    raw = bytearray(archive(*RECORDS, packed=packed)[0])
    for place, wrong in damage:
        raw[place % len(raw) : place % len(raw) + len(wrong)] = wrong
    path = tmp_path_factory.mktemp("any") / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(raw)
    (source,) = find_sources([path])
    whole = documents_of([Piece(source)])
    assert documents_of(list(cut([source], ReadSettings(), 300))) == whole


def test_no_member_is_read_twice_for_zlib(tmp_path: Path) -> None:
    """Offsets are those that other tools index by: each member unpacks by itself."""
    raw, starts = archive(*RECORDS, packed=True)
    (tmp_path / "a.warc.gz").write_bytes(raw)
    (source,) = find_sources([tmp_path / "a.warc.gz"])
    for frame, start in zip(frames(Piece(source), 10_000), starts, strict=True):
        assert zlib.decompressobj(31).decompress(raw[start:]) == frame.raw


@pytest.mark.parametrize("charset", ["zip", "bz2", "utf-7", "no\0ne"])
def test_a_charset_cannot_end_the_run(tmp_path: Path, read: Read, charset: str) -> None:
    bad = record(http(b"caf\xe9 +2AA-" * 3, f"text/plain; charset={charset}"))
    (tmp_path / "a.warc").write_bytes(bad + record(http(page(1))))
    assert read(tmp_path / "a.warc")[-1].text == "Text of page 1."


@pytest.mark.parametrize("length", [10**14, 10**6])
def test_false_lengths_take_no_time(tmp_path: Path, read: Read, rejected: Rejected, length: int) -> None:
    """Each says that it goes on to the end of the file, or far into those behind it."""
    (tmp_path / "a.warc").write_bytes(record(b"x", length=length) * 20_000 + record(http(page(1))))
    began = time.process_time()
    assert [document.text for document in read(tmp_path / "a.warc")] == ["Text of page 1."]
    assert time.process_time() - began < 3
    assert rejected.bad == 20_000


@pytest.mark.parametrize(
    "bad", [record(b"x", length=900_000), b"WARC/1.0\nX:\n", b"\r\n" * 50], ids=["lengths", "no lengths", "newlines"]
)
def test_what_is_packed_as_a_whole_is_gone_through_once(bad: bytes) -> None:
    raw = b"\r\n" * 500_000 + record(http(page(0))) + bad * 20_000 + b"x" * 70_000 + record(http(page(1)))
    began = time.process_time()
    found = list(records(io.BytesIO(raw), 0, 2**20, False))
    assert time.process_time() - began < 2
    assert [frame.raw for frame in found if not frame.reason] == [record(http(page(n)))[:-4] for n in (0, 1)]
    assert len(found) in (3, 20_002)


@given(
    damage=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=12)), max_size=3),
    newlines=st.integers(0, 30),
    chunk=st.sampled_from([5, 64, 1000]),
    limit=st.sampled_from([100, 300, 10**15]),
)
def test_packing_and_chunks_change_nothing(
    damage: list[tuple[int, bytes]], newlines: int, chunk: int, limit: int
) -> None:
    raw = bytearray((b"\n" * newlines).join(RECORDS))
    for place, wrong in damage:
        raw[place % len(raw) : place % len(raw) + len(wrong)] = wrong
    plain = list(records(io.BytesIO(raw), 0, limit, True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warc_frames, "CHUNK_BYTES", chunk)
        assert list(records(io.BytesIO(raw), 0, limit, True)) == plain
        packed = list(records(io.BytesIO(raw), 0, limit, False))
    if limit == 10**15:
        assert packed == plain
    assert [frame for frame in packed if not frame.reason] == [
        frame for frame in plain if not frame.reason and frame.offset in {one.offset for one in packed}
    ]
