from __future__ import annotations

import csv
import gzip
import io
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.reading.conftest import Read

from tallow.data.read import Piece, ReadSettings, read_piece
from tallow.data.reading.lines import lines
from tallow.data.records import Rejected
from tallow.data.sources import find_sources

WHITE = [b"\n", b"\r\n", b" \n", b"\t", b"\r", b"\x0b\n"]


@pytest.mark.parametrize("blank", [b"\n", b" \t\r\n"])
@pytest.mark.parametrize(
    ("name", "begin", "end", "settings"),
    [
        ("a.txt.gz", b"one\n", b"two", {"split": "lines"}),
        ("a.txt.gz", b"one\n", b"two", {"split": "paragraphs"}),
        ("a.jsonl.gz", b'{"text": "one"}\n', b'{"text": "two"}', {}),
        ("a.csv.gz", b"text,n\none,1\n", b"two,2", {}),
    ],
)
def test_blank_lines_take_no_time(
    tmp_path: Path, read: Read, blank: bytes, name: str, begin: bytes, end: bytes, settings: dict[str, Any]
) -> None:
    """So many one by one would take ten seconds and more."""
    raw = begin + blank * (12_000_000 // len(blank))
    (tmp_path / name).write_bytes(gzip.compress(raw + end, 1))
    began = time.process_time()
    documents = read(tmp_path / name, **settings)
    assert time.process_time() - began < 2
    assert [document.text for document in documents] == ["one", "two"]
    assert documents[1].offset == len(raw)


@given(parts=st.lists(st.sampled_from([*WHITE, b"x", b"yz\n"])).map(b"".join), packed=st.booleans())
def test_lines_and_their_numbers(tmp_path_factory: pytest.TempPathFactory, parts: bytes, packed: bool) -> None:
    path = tmp_path_factory.mktemp("any") / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(parts) if packed else parts)
    (source,) = find_sources([path])
    with source.open() as stream:
        found = list(lines(stream, Piece(source), 100))
    plain = list(io.BytesIO(parts))
    assert [(line.number, line.offset, line.raw) for line in found if not line.blank] == [
        (number + 1, len(b"".join(plain[:number])), line.rstrip(b"\r\n"))
        for number, line in enumerate(plain)
        if line.strip()
    ]
    assert sum(line.lines for line in found) == len(plain)


@given(inside=st.lists(st.sampled_from([*WHITE, b"x", b'""'])).map(b"".join))
def test_blank_lines_in_quotes_are_kept(tmp_path_factory: pytest.TempPathFactory, inside: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.csv"
    path.write_bytes(b'text,n\n\n\n"<' + inside + b'>",1\n\n\nlast,2\n')
    (source,) = find_sources([path])
    found = list(read_piece(Piece(source), ReadSettings(), Rejected()))
    _, row, _ = filter(None, csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert found[-1].text == "last"
    if "\r\r" not in row[0]:  # of these, which end no line, one is taken for its end
        assert found[0].text == row[0].replace("\r\n", "\n")
