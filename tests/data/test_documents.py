from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tallow.data.documents import SCHEMA, DocumentWriter, read_documents_split, text_bytes
from tallow.errors import DataError


def batch(first: int, count: int, length: int = 100) -> pa.RecordBatch:
    rows = range(first, first + count)
    return pa.RecordBatch.from_pydict(
        {
            "id": [f"{row:032x}" for row in rows],
            "text": [f"{row:05}" + "é" * (length // 2) for row in rows],
            "source": ["a.txt"] * count,
            "offset": list(rows),
            "language": [None] * count,
        },
        SCHEMA,
    )


def test_parts_are_bounded_and_keep_order(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path / "train", part_bytes=2000, row_group_bytes=500)
    for first in range(0, 100, 7):
        writer.add(batch(first, min(7, 100 - first)))
    counts = writer.close()
    assert counts.documents == 100
    assert counts.bytes == 100 * 105
    assert len(counts.parts) == 5
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == list(counts.parts)
    read = pa.Table.from_batches(read_documents_split(tmp_path / "train", counts, rows=9))
    assert read.column("offset").to_pylist() == list(range(100))
    assert sum(text_bytes(piece) for piece in read.to_batches()) == counts.bytes


def test_bytes_do_not_depend_on_how_documents_arrive_whole_groups(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writer = DocumentWriter(tmp_path / name)
        writer.add(batch(0, 50))
        writer.close()
    assert (tmp_path / "a" / "part-00000.parquet").read_bytes() == (tmp_path / "b" / "part-00000.parquet").read_bytes()


def test_empty_split_has_no_parts(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path / "validation")
    writer.add(batch(0, 0))
    counts = writer.close()
    assert (counts.documents, counts.parts) == (0, ())
    assert list(read_documents_split(tmp_path / "validation", counts, rows=9)) == []


@pytest.mark.parametrize("damage", ["removed", "truncated", "other"])
def test_damage_is_a_data_error(tmp_path: Path, damage: str) -> None:
    writer = DocumentWriter(tmp_path / "train")
    writer.add(batch(0, 50))
    counts = writer.close()
    path = tmp_path / "train" / counts.parts[0]
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        counts = counts.model_copy(update={"documents": 51})
    with pytest.raises(DataError, match=r"does not exist|are damaged|holds 50 documents where its manifest says 51"):
        list(read_documents_split(tmp_path / "train", counts, rows=9))
