"""Pieces of a file give the same documents, ids and order as the file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.read import Document, Piece, ReadSettings, cut, read_documents, read_piece
from tallow.data.records import Rejected
from tallow.data.sources import find_sources

SAMPLE = "\n\n öne\ntwo\r\n\r\n \t \r\nthree\n\n\nfour\nfive six\n\nseven".encode()
JSONL = (
    b'\xef\xbb\xbf{"text": "a"}\n\nbad\n{"text": "\xc3\xb6"}\r\n{"text": 1}\n{"text": "cc"}\n'
    + b" " * 30
    + b'\n{"text": "d"}'
)


def through(path: Path, *bounds: int, **settings: Any) -> tuple[list[Document], int]:
    """The documents of the pieces between these bytes, and how many records were bad."""
    (source,) = find_sources([path])
    rejected = Rejected()
    documents = [
        document
        for begin, end in zip([0, *bounds], [*bounds, None], strict=True)
        for document in read_piece(Piece(source, begin, end), ReadSettings(**settings), rejected)
    ]
    return documents, rejected.bad


@pytest.mark.parametrize("split", ["lines", "paragraphs"])
@pytest.mark.parametrize("limit", [8, 1000])
def test_text_cut_at_every_byte(tmp_path: Path, split: str, limit: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(SAMPLE)
    expected = through(path, split=split, max_document_bytes=limit)
    assert len(expected[0]) >= 2
    for at in range(1, len(SAMPLE) + 2):
        assert through(path, at, split=split, max_document_bytes=limit) == expected
    assert through(path, *range(1, len(SAMPLE)), split=split, max_document_bytes=limit) == expected


@pytest.mark.parametrize(("name", "limit"), [("a.jsonl", 15), ("a.jsonl", 1000), ("a.json", 1000)])
def test_json_lines_cut_at_every_byte(tmp_path: Path, name: str, limit: int) -> None:
    path = tmp_path / name
    path.write_bytes(JSONL)
    expected = through(path, max_document_bytes=limit)
    assert (len(expected[0]), expected[1]) == ((3, 3) if limit == 15 else (4, 2))
    for at in range(1, len(JSONL) + 2):
        assert through(path, at, max_document_bytes=limit) == expected
    assert through(path, *range(1, len(JSONL)), max_document_bytes=limit) == expected


def test_markdown_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    raw = b"---\ntitle: x\n\ntags: y\n---\n# One\n\ntwo\nthree\n\nfour"
    path.write_bytes(raw)
    expected = through(path, split="paragraphs")
    assert [document.text for document in expected[0]] == ["# One", "two\nthree", "four"]
    for at in range(1, len(raw)):
        assert through(path, at, split="paragraphs") == expected


@given(
    raw=st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b"a", b"\xc3\xb6", b"bc\n", b"\t\n", b"x" * 9])).map(b"".join),
    bounds=st.sets(st.integers(1, 60), max_size=4),
    split=st.sampled_from(["lines", "paragraphs"]),
)
def test_any_text_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, bounds: set[int], split: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes(raw + b"end")
    settings = {"split": split, "max_document_bytes": 8}
    assert through(path, *sorted(bounds), **settings) == through(path, **settings)


def test_parquet_cut_between_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(200)]}), path, row_group_size=50)
    expected = through(path)
    assert len(expected[0]) == 200
    size = path.stat().st_size
    assert all(through(path, at) == expected for at in range(1, size, 300))
    assert through(path, *range(1, size, 300)) == expected


def test_what_is_large_and_can_be_cut_is_cut(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(100))
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_bytes(b"[" + lines.rstrip().replace(b"\n", b",\n") + b"]")
    (tmp_path / "d.csv").write_text("text,n\n" + "".join(f"text {number},1\n" for number in range(100)))
    (tmp_path / "e.txt").write_text("whole " * 100)
    (tmp_path / "f.json").write_bytes(b'{"data":\n' + lines)
    (tmp_path / "g.jsonl").write_bytes(b"\0" + lines)
    sources = find_sources([tmp_path])
    settings = ReadSettings()
    pieces = list(cut(sources, settings, piece_bytes=500))
    counts = [sum(piece.source == source for piece in pieces) for source in sources]
    assert counts == [-(-len(lines) // 500), 1, 1, 1, 1, 1, 1]
    whole = [document for source in sources for document in read_piece(Piece(source), settings, Rejected())]
    assert [document for piece in pieces for document in read_piece(piece, settings, Rejected())] == whole
    assert len(whole) == 401
    assert len({document.id for document in whole}) == 401


def test_a_bad_record_in_a_piece_is_named_by_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\nbad\n')
    (source,) = find_sources([path])
    rejected = Rejected(tmp_path / "rejected.log")
    assert list(read_piece(Piece(source, 14), ReadSettings(), rejected)) == []
    assert rejected.first.startswith(f"{path}, byte 14: not JSON")
    record = json.loads((tmp_path / "rejected.log").read_text())
    assert (record["offset"], "line" in record) == (14, False)


SHARE = """
import json, sys
from tallow.data.read import ReadSettings, cut, read_documents, read_piece
from tallow.data.records import Rejected
from tallow.data.sources import find_sources
directory, share = sys.argv[1], int(sys.argv[2])
settings, rejected = ReadSettings(split="paragraphs"), Rejected()
pieces = list(cut(find_sources([directory]), settings, 1000))
for number in range(share, len(pieces), 2):
    print(json.dumps([number, [document.id for document in read_piece(pieces[number], settings, rejected)]]))
"""


def test_two_processes_give_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"paragraph {number}\nof text\n\n" for number in range(300)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(300)))
    shares = [
        subprocess.Popen([sys.executable, "-c", SHARE, str(tmp_path), str(share)], stdout=subprocess.PIPE, text=True)
        for share in range(2)
    ]
    answers = [json.loads(line) for share in shares for line in share.communicate()[0].splitlines()]
    sources = find_sources([tmp_path])
    whole = read_documents(sources, ReadSettings(split="paragraphs"), Rejected())
    assert len(answers) > 10
    assert [one for _, ids in sorted(answers) for one in ids] == [document.id for document in whole]
