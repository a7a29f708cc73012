"""Small files that stand for much, and how little of it is held at once."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.reading.conftest import Read

from tallow.data.read import ReadSettings, read_records
from tallow.data.reading import parquet, parquet_pages
from tallow.data.reading.thrift import read_struct
from tallow.data.records import Rejected
from tallow.errors import DataError

WHOLE = {"use_dictionary": False, "data_page_size": 2**31 - 1}
SHAPES: dict[str, dict[str, Any]] = {
    "dictionary": {"use_dictionary": True, "dictionary_pagesize_limit": 2**31 - 1},
    "pages": {"use_dictionary": False, "data_page_size": 1024, "write_batch_size": 1},
    "groups": {"use_dictionary": False, "row_group_size": 1},
    "delta": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
}

SCRIPT = """
import sys
from pathlib import Path
from tallow.data.read import read_records
def peak():  # not getrusage, which counts what the process was before this program, too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
before = peak()
for path in sys.argv[1:]:
    assert sum(len(record.fields["text"]) for record in read_records(path)) == 25 * 16_000_000
    print(Path(path).stem, peak() - before)
"""


def write(path: Path, table: pa.Table, **how: Any) -> Path:
    pq.write_table(table, path, compression="zstd", **how)
    return path


def test_long_strings_are_held_one_after_another(tmp_path: Path) -> None:
    """Each file is of 400 MB in a few KB; together in memory are 64 MB as Arrow's strings, and 64 MB as Python's."""
    table = pa.table({"text": ["x" * 16_000_000] * 25})
    paths = [
        str(write(tmp_path / f"{name}.parquet", table, **SHAPES[name])) for name in ("dictionary", "pages", "delta")
    ]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for line in ended.stdout.splitlines():
        assert int(line.split()[1]) < 500, ended.stdout


@pytest.mark.parametrize("how", SHAPES.values(), ids=SHAPES)
def test_however_few_rows_at_once_all_come(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    texts = [str(number % 7) * (number % 50 + 1) for number in range(100)]
    path = write(tmp_path / "a.parquet", pa.table({"text": texts}), **how)
    for most in (1000, 1):
        monkeypatch.setattr(parquet_pages, "BATCH_BYTES", most)
        monkeypatch.setattr(parquet, "BATCH_BYTES", most)
        documents = read(path, max_document_bytes=500)
        assert [(document.text, document.offset) for document in documents] == list(zip(texts, range(100), strict=True))


def test_a_page_that_unpacks_to_too_much_ends_its_file(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", **WHOLE) as writer:
        for texts in (["before"], ["x" * 9_000_000] * 8, ["after"]):
            writer.write_table(pa.table({"text": texts}, schema=schema))
    assert [document.text for document in read(path, max_document_bytes=9_000_000)] == ["before"]
    assert "unpack to 72,000," in rejected.first
    assert "(row group 2); what follows is not read" in rejected.first


def test_a_large_page_that_is_packed_as_text_is_read(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    texts = ["x" * 4_000_000] * 17
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="none", **WHOLE)
    assert len(read(tmp_path / "a.parquet", max_document_bytes=4_000_000)) == 17
    assert rejected.bad == 0


def nested(kind: str, strings: pa.Array) -> pa.Array:
    """Three rows of 1, 1000 and 1 strings."""
    offsets = [0, 1, 1001, 1002]
    if kind == "map":
        return pa.MapArray.from_arrays(offsets, pa.array(["key"] * 1002), strings)
    if kind == "list":
        return pa.ListArray.from_arrays(offsets, strings)
    return pa.StructArray.from_arrays([pa.ListArray.from_arrays(offsets, strings)], ["inside"])


@pytest.mark.parametrize("kind", ["list", "map", "struct"])
def test_a_row_of_many_long_strings_is_set_aside(tmp_path: Path, kind: str) -> None:
    """The dictionary holds the string once, the row a thousand times: more than there is room for."""
    numbers = pa.array([0] + [1] * 1000 + [2], pa.int32())
    strings = pa.DictionaryArray.from_arrays(numbers, ["one", "x" * 30_000_000, "two"])
    table = pa.table({"rows": nested(kind, strings)})
    path = write(tmp_path / "a.parquet", table, dictionary_pagesize_limit=2**31 - 1)
    rejected = Rejected()
    settings = ReadSettings(max_bad_fraction=0.5)
    found = [record.fields["rows"] for record in read_records(path, settings, rejected)]
    assert found == [table["rows"][0].as_py(), table["rows"][2].as_py()]
    assert rejected.first.endswith("row 2: longer than 67,108,864 bytes")


def test_a_row_of_many_nulls_is_not_made(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    nulls = pa.ListArray.from_arrays([0, 10_000_000], pa.nulls(10_000_000, pa.int8()))
    write(tmp_path / "a.parquet", pa.table({"text": nulls}), data_page_size=2**31 - 1)
    assert read(tmp_path / "a.parquet", max_document_bytes=1_000_000) == []
    assert "unpack to 160,000,000 at once" in rejected.first


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_repeated_strings_of_all_encodings_are_read(tmp_path: Path, encoding: str | None) -> None:
    rows = [[{"role": "user", "content": f"{number}"}] * (number % 3) or None for number in range(100)]
    how: dict[str, Any] = {}
    if encoding:
        leaves = [f"messages.list.element.{name}" for name in ("role", "content")]
        how = {"use_dictionary": False, "column_encoding": dict.fromkeys(leaves, encoding)}
    path = write(tmp_path / "a.parquet", pa.table({"messages": rows, "n": list(range(100))}), **how)
    assert [record.fields for record in read_records(path)] == [
        {"messages": row, "n": number} for number, row in enumerate(rows)
    ]


def test_row_groups_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": [random.randbytes(5000).hex()]}))
    metadata = pq.read_metadata(path)
    twice = pq.read_metadata(path)
    for _ in range(50):
        twice.append_row_groups(metadata)
    twice.write_metadata_file(tmp_path / "footer")
    raw = path.read_bytes()
    body = raw[: len(raw) - 8 - metadata.serialized_size]
    path.write_bytes(body + (tmp_path / "footer").read_bytes()[4:])
    with pytest.raises(DataError, match=r"is damaged .row groups of"):
        list(read_records(path))


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_headers(raw: bytes) -> None:
    try:
        fields, end = read_struct(raw)
    except (IndexError, ValueError):
        return
    assert raw[end - 1] == 0
    assert isinstance(fields, dict)


@given(place=st.integers(4, 1500), wrong=st.binary(min_size=1, max_size=8))
def test_damage_anywhere(tmp_path_factory: pytest.TempPathFactory, place: int, wrong: bytes) -> None:
    """Whatever the damage: rows, or one of our errors."""
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    write(path, pa.table({"text": [f"text {number % 7}" for number in range(60)]}), row_group_size=20)
    raw = bytearray(path.read_bytes())
    raw[place % (len(raw) - 4) : place % (len(raw) - 4) + len(wrong)] = wrong
    path.write_bytes(raw)
    with contextlib.suppress(DataError):
        assert len(list(read_records(path, ReadSettings(max_bad_fraction=1)))) <= 60
