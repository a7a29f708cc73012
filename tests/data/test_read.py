from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.read import Document, ReadSettings, read_documents, read_records
from tallow.data.records import Rejected
from tallow.data.sources import find_sources
from tallow.errors import DataError, UsageError
from tallow.recipe import parse_section


def read(path: Path, rejected: Rejected | None = None, **settings: Any) -> list[Document]:
    return list(read_documents(find_sources([path]), ReadSettings(**settings), rejected or Rejected()))


def write_lines(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def good_lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield json.dumps({"text": f"good {number}"}).encode()


def test_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffPepys’s\r\ndiary\n".encode())
    (document,) = read(path)
    assert document.text == "Pepys’s\ndiary\n"
    assert (document.source, document.offset) == (path.as_posix(), 0)


def test_paragraphs_and_lines_have_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    raw = "\n\nöne\ntwo\r\n \r\nthree\n\n\n\nfour".encode()
    path.write_bytes(raw)
    paragraphs = read(path, split="paragraphs")
    assert [document.text for document in paragraphs] == ["öne\ntwo", "three", "four"]
    lines = read(path, split="lines")
    assert [document.text for document in lines] == ["öne", "two", "three", "four"]
    for document in (*paragraphs, *lines):
        assert raw[document.offset :].startswith(document.text.split("\n")[0].encode())


def test_jsonl_offsets_are_bytes_of_the_unpacked_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    raw = '{"text": "ä"}\n\n{"text": "second", "n": 1}\r\n{"text": "third"}'.encode()
    path.write_bytes(raw)
    documents = read(path)
    assert [document.text for document in documents] == ["ä", "second", "third"]
    for document in documents:
        assert json.loads(raw[document.offset :].split(b"\n")[0])["text"] == document.text


def test_parquet_offsets_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"row {number}" for number in range(1000)]
    pq.write_table(pa.table({"body": texts, "other": list(range(1000))}), path)
    documents = read(path, text_field="body")
    assert [(document.text, document.offset) for document in documents] == list(zip(texts, range(1000), strict=True))


def test_id_names_source_offset_and_content() -> None:
    document = Document.make("text", "a.txt", 7)
    assert len(document.id) == 32
    assert document.digest == sha256(b"text").digest()
    same = Document.make("text", "a.txt", 7)
    others = [Document.make("text!", "a.txt", 7), Document.make("text", "b.txt", 7), Document.make("text", "a.txt", 8)]
    assert same.id == document.id
    assert len({document.id, *(other.id for other in others)}) == 4


BAD_LINES = [
    (b'{"text": "cut', "not JSON"),
    (b"plain words", "not JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b'{"other": 1}', "no field text"),
    (b'{"text": null}', "field text is not a string"),
    (b'{"text": "\xff\xfe"}', "not utf-8 text"),
    (rb'{"text": "\ud83d"}', "half a surrogate pair"),
    (b'{"text": "' + b"x" * 300 + b'"}', "longer than 256 bytes"),
    (b'{"text": "a\x00b"}', "not JSON"),
    (b"[" * 250, "nested too deeply|not JSON"),
    (b'{"text": ' + b"9" * 200 + b"}", "field text is not a string"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_line_is_set_aside_with_its_place(tmp_path: Path, line: bytes, reason: str) -> None:
    lines = list(good_lines(20))
    path = write_lines(tmp_path / "a.jsonl", *lines[:10], line, *lines[10:])
    rejected = Rejected(tmp_path / "rejected.jsonl")
    documents = read(path, rejected, max_document_bytes=256)
    assert [document.text for document in documents] == [f"good {number}" for number in range(20)]
    assert (rejected.good, rejected.bad) == (20, 1)
    (record,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert record["source"] == path.as_posix()
    assert record["line"] == 11
    assert any(choice in record["reason"] for choice in reason.split("|"))
    assert record["start"]


def test_deeply_nested_line_is_set_aside(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *good_lines(20), b"[" * 100_000)
    rejected = Rejected()
    assert len(read(path, rejected)) == 20
    assert "nested" in rejected.first or "JSON" in rejected.first


def test_gigantic_line_costs_no_memory_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "before"}\n')
        file.write(b"x" * 5_000_000)
        file.write(b'\n{"text": "after"}\n')
    rejected = Rejected(tmp_path / "rejected.jsonl")
    documents = read(path, rejected, max_document_bytes=1000, max_bad_fraction=0.5)
    assert [document.text for document in documents] == ["before", "after"]
    assert documents[1].offset == 5_000_020
    assert (tmp_path / "rejected.jsonl").stat().st_size < 1000


def test_a_line_that_unpacks_without_end_ends_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "before"}\n' + bytes(3_000_000) + b'\n{"text": "after"}\n'))
    rejected = Rejected()
    documents = read(path, rejected, max_document_bytes=1000, max_bad_fraction=0.5)
    assert [document.text for document in documents] == ["before"]
    assert "what follows is not read" in rejected.first


def test_a_packed_array_that_unpacks_to_too_much_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 1_000_000 + b"]"))
    with pytest.raises(DataError, match="unpacks to a JSON array of more than 16,000 bytes"):
        read(path, max_document_bytes=1000)


@pytest.mark.parametrize("split", ["lines", "paragraphs"])
def test_gigantic_piece_of_text_is_set_aside(tmp_path: Path, split: str) -> None:
    path = write_lines(tmp_path / "a.txt", b"before", b"", *[b"x" * 60] * 5, b"y" * 101, b"", b"after")
    rejected = Rejected()
    documents = read(path, rejected, split=split, max_document_bytes=100, max_bad_fraction=0.5)
    kept = [document.text for document in documents]
    assert kept[0] == "before"
    assert kept[-1] == "after"
    assert rejected.bad == 1
    assert len(kept) == (7 if split == "lines" else 2)


def test_bad_files_among_good_ones_are_set_aside(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"good {number}")
    (tmp_path / "03.txt").write_bytes(b"\0binary")
    (tmp_path / "07.txt").write_bytes(b"")
    (tmp_path / "05.jsonl.gz").write_bytes(gzip.compress(b'{"text": "before the damage"}\n' * 500)[:-20])
    rejected = Rejected(tmp_path / "rejected.log")
    documents = list(read_documents(find_sources([tmp_path]), ReadSettings(max_bad_fraction=0.2), rejected))
    assert len({document.source for document in documents} - {(tmp_path / "05.jsonl.gz").as_posix()}) == 18
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "rejected.log").read_text().splitlines()]
    assert [reason.split(" ", 1)[0] for reason in reasons] == ["is", "data", "is"]
    assert "cut short" in reasons[1]
    assert rejected.bad == 3


def test_too_many_bad_lines_end_the_reading(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *good_lines(8), b"bad", b"bad")
    with pytest.raises(DataError, match=r"2 of 10 records .* line 9: not JSON"):
        read(path)
    assert len(read(path, max_bad_fraction=0.2)) == 8
    with pytest.raises(DataError, match="1 of 1 records"):
        read(write_lines(tmp_path / "b.jsonl", b"bad"), max_bad_fraction=1.0)


@pytest.mark.parametrize(
    ("name", "raw", "message", "hint"),
    [
        ("a.txt", b"", "is empty", "leave it out"),
        ("a.txt", b" \n\t\n", "is empty", "leave it out"),
        ("a.jsonl", b"", "is empty", "leave it out"),
        ("a.jsonl", b"\n\n", "is empty", "leave it out"),
        ("a.txt", b"text\0more", "is binary", "utf-16"),
        ("a.jsonl", b"\0\1\2\3" * 100, "is binary", "utf-16"),
        ("a.txt", "café".encode("latin-1"), "not utf-8 text .byte 3", "latin-1"),
        ("a.txt", "café".encode("utf-16"), "not utf-8 text", "set encoding to utf-16"),
        ("a.parquet", b"", "is damaged", "again"),
        ("a.parquet", b"PAR1" + bytes(100), "is damaged", "again"),
    ],
)
def test_unusable_file_is_a_data_error(tmp_path: Path, name: str, raw: bytes, message: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(path, encoding="utf-8")
    assert str(path) in caught.value.message
    assert hint in caught.value.hint


def test_truncated_and_corrupted_parquet_are_data_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{number}" * 100 for number in range(1000)]}), path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    with pytest.raises(DataError, match="is damaged"):
        read(path)
    path.write_bytes(raw[:50] + bytes(500) + raw[550:])
    with pytest.raises(DataError, match="is damaged"):
        read(path)


def test_parquet_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    with pytest.raises(DataError, match="has no column text") as caught:
        read(path)
    assert "body" in caught.value.hint


def test_parquet_rows_that_are_no_utf8_are_set_aside(tmp_path: Path) -> None:
    """Arrow does not look whether strings are UTF-8, neither when they are written nor when they are read."""
    strings = pa.array([b"one", b"\xff\xfe", b"\xf0\x9f", "zwölf".encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    rejected = Rejected()
    found = read_documents(find_sources([tmp_path / "a.parquet"]), ReadSettings(max_bad_fraction=1), rejected)
    assert [(document.text, document.offset) for document in found] == [("one", 0), ("zwölf", 3)]
    assert rejected.bad == 2


def test_parquet_rows_without_text_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b", "x" * 50]}), path)
    rejected = Rejected(tmp_path / "rejected.jsonl")
    assert len(read(path, rejected, max_bad_fraction=0.5, max_document_bytes=40)) == 2
    assert [json.loads(line)["line"] for line in (tmp_path / "rejected.jsonl").read_text().splitlines()] == [2, 4]


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("café\n\nnaïve".encode("latin-1"))
    assert [document.text for document in read(path, encoding="latin-1", split="paragraphs")] == ["café", "naïve"]
    path.write_bytes("café".encode("utf-16"))
    assert [document.text for document in read(path, encoding="utf-16")] == ["café"]
    with pytest.raises(UsageError, match="line by line as utf-16"):
        read(path, encoding="utf-16", split="lines")
    with pytest.raises(UsageError, match="not a text encoding"):
        parse_section(ReadSettings, {"encoding": "rot13"}, "prepare")


def test_too_long_whole_file_says_how_to_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 101)
    with pytest.raises(DataError, match="longer than 100 bytes") as caught:
        read(path, max_document_bytes=100)
    assert "split" in caught.value.hint


def test_records_of_jsonl_and_parquet(tmp_path: Path) -> None:
    messages = {"messages": [{"role": "user", "content": "Hello"}]}
    path = write_lines(tmp_path / "a.jsonl", *[json.dumps(messages).encode()] * 12, b"bad")
    rejected = Rejected()
    assert [record.fields for record in read_records(path, rejected=rejected)] == [messages] * 12
    assert (rejected.good, rejected.bad) == (12, 1)
    table = tmp_path / "b.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "n": [1, 2]}), table)
    *_, last = found = list(read_records([path, table]))
    assert [record.fields for record in found] == [messages] * 12 + [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    assert [str(record.place) for record in found[11:13]] == [f"{path}, line 12", f"{table}, row 1"]
    assert (last.place.number, last.place.offset) == (2, 1)
    (tmp_path / "c.txt").write_text("text")
    with pytest.raises(DataError, match="text file where records are needed"):
        list(read_records(tmp_path / "c.txt"))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \r\n"])
def test_json_file_that_is_an_array(tmp_path: Path, indent: int | None, start: str) -> None:
    path = tmp_path / "a.json"
    texts = ["first", "zwëi\r\n", "third 🙂"]
    path.write_bytes((start + json.dumps([{"text": text} for text in texts], indent=indent)).encode())
    documents = read(path)
    assert [(document.text, document.offset) for document in documents] == list(zip(texts, range(3), strict=True))
    assert [str(record.place) for record in read_records(path)][2] == f"{path}, record 3"


def test_json_file_with_an_object_on_each_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.json", b"", *good_lines(19), b"bad")
    rejected = Rejected()
    assert [document.text for document in read(path, rejected)] == [f"good {number}" for number in range(19)]
    assert rejected.first.startswith(f"{path}, line 21: not JSON")


def test_bad_elements_of_an_array_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    elements = ['{"text": "good"}'] * 9 + [
        "[1]",
        "null",
        r'{"text": "\ud83d"}',
        '{"text": 1}',
        f'{{"text": "{"x" * 65}"}}',
    ]
    path.write_text(f"[{','.join(elements)}]")
    rejected = Rejected(tmp_path / "rejected.jsonl")
    assert len(read(path, rejected, max_document_bytes=64, max_bad_fraction=0.5)) == 9
    records = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(record["line"], record["reason"]) for record in records] == [
        (10, "not a JSON object"),
        (11, "not a JSON object"),
        (12, "half a surrogate pair in a string"),
        (13, "field text is not a string"),
        (14, "longer than 64 bytes"),
    ]


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        (b'{\n  "data": [{"text": "x"}]\n}', r"neither a JSON array nor JSON lines \(line 1: not JSON", "jq -c"),
        (b'["a"]\n["b"]', "is not valid JSON", "again"),
        (b'[{"text": "x"}, {"text":', "is not valid JSON", "again"),
        (b"[" * 100_000, "is not valid JSON", "again"),
        (b'["\xff"]', "is not utf-8 text", "latin-1"),
        (b" [ ]", "is empty", "leave it out"),
        (b" ", "is empty", "leave it out"),
        (b'{"data": [{"text": "x"}]}', "line 1: no field text, but data", "mend the data"),
        (b'["a", "b"]', "2 of 2 records .* record 1: not a JSON object", "mend the data"),
    ],
)
def test_json_files_that_hold_no_records_say_what_to_do(tmp_path: Path, raw: bytes, message: str, hint: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert hint in caught.value.hint


@given(lines=st.lists(st.binary(max_size=40), max_size=12), limit=st.integers(8, 48))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], limit: int) -> None:
    """Whatever the bytes: documents, or one of our errors; offsets point at what was read."""
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    raw = b"\n".join([b'{"text": "x"}', *lines, b'{"text": "y"}'])
    path.write_bytes(raw)
    try:
        documents = read(path, max_document_bytes=limit, max_bad_fraction=1.0)
    except DataError:
        return
    for document in documents:
        assert json.loads(raw[document.offset :].split(b"\n")[0])["text"] == document.text


@given(inside=st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_arrays(tmp_path_factory: pytest.TempPathFactory, inside: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_bytes(b'[{"text": "x"}' + inside + b"]")
    try:
        documents = read(path, max_bad_fraction=1.0)
    except DataError:
        return
    assert documents[0].text == "x"


@given(
    pieces=st.lists(st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]), min_size=1)),
    split=st.sampled_from(["lines", "paragraphs", "whole"]),
)
def test_text_survives_splitting(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], split: str) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    joined = "\n".join(["start", *pieces])
    path.write_bytes(joined.encode())
    documents = read(path, split=split)
    rebuilt = "\n".join(document.text for document in documents)
    assert rebuilt.split() == joined.split()
