from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.reading.conftest import Read

from tallow.data.read import read_records
from tallow.data.records import Rejected
from tallow.errors import DataError


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_quotes_and_offsets(tmp_path: Path, read: Read, delimiter: str, end: str) -> None:
    path = tmp_path / "a.csv"
    rows = [["n", "text", "more, fields; or | not"], ["1", 'a "quoted"\nöne', "x"], ["2", f"with{delimiter}it", ""]]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(rows)
    raw = ("\ufeff" + file.getvalue()).encode()
    path.write_bytes(raw)
    documents = read(path)
    assert [document.text for document in documents] == [rows[1][1], rows[2][1]]
    assert [raw[document.offset :][:1] for document in documents] == [b"1", b"2"]
    assert [record.fields for record in read_records(path)] == [
        dict(zip(rows[0], row, strict=True)) for row in rows[1:]
    ]


def test_tab_separated_values(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tn\none, two, three\t1\n")
    assert [document.text for document in read(path)] == ["one, two, three"]


def test_one_column_and_a_chosen_one(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.csv").write_text("text\none\n\ntwo\n")
    assert [document.text for document in read(tmp_path / "a.csv")] == ["one", "two"]
    (tmp_path / "b.csv").write_text("a;body;c\n1,5;text;3,5\n")
    assert [document.text for document in read(tmp_path / "b.csv", text_field="body")] == ["text"]
    with pytest.raises(DataError, match="has no column text") as caught:
        read(tmp_path / "b.csv")
    assert "a, body, c" in caught.value.hint


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"only one", "1 fields where the header has 2"),
        (b"a,b,c", "3 fields where the header has 2"),
        (b'"a"b,c', "not CSV"),
        (b"\xff\xfe,x", "is not utf-8 text"),
        (b"x" * 300 + b",1", "longer than 200 bytes"),
        (b"a\0,b", "is binary"),
        (b"a\rb,c", "not CSV"),
    ],
)
def test_bad_records_are_set_aside(tmp_path: Path, read: Read, rejected: Rejected, bad: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,n\none,1\n" + bad + b"\ntwo,2\n")
    assert [document.text for document in read(path, max_document_bytes=200, encoding="utf-8")] == ["one", "two"]
    assert rejected.bad == 1
    assert reason in rejected.first
    assert "line 3" in rejected.first


def test_a_quote_that_is_never_closed_takes_no_more_than_the_limit(
    tmp_path: Path, read: Read, rejected: Rejected
) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\none,1\n"two,2\n' + "good,3\n" * 100)
    documents = read(path, max_document_bytes=70)
    assert len(documents) == 1 + 100 - 10
    assert "line 3: longer than 70 bytes, over 11 lines (a quote that is not closed?)" in rejected.first


def test_long_fields_are_read(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n\n" + "x" * 200_000 + ",1\n")
    assert len(read(path)[0].text) == 200_000


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"]), min_size=1),
            st.integers(0, 9),
        ),
        min_size=1,
    )
)
def test_what_python_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "n"), *rows])
    assert [(record.fields["text"], record.fields["n"]) for record in read_records(path)] == [
        (text, str(n)) for text, n in rows
    ]


@given(raw=st.text('ab,";\t\n\r|', max_size=80))
def test_no_table_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, raw: str) -> None:
    path = tmp_path_factory.mktemp("any") / "a.csv"
    path.write_bytes(b"text,n\n" + raw.encode())
    rejected = Rejected()
    try:
        found = list(read_records(path, rejected=rejected))
    except DataError:
        assert rejected.bad or raw
        return
    assert all(set(record.fields) for record in found)
