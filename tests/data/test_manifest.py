from __future__ import annotations

import json
from pathlib import Path

import pytest

from tallow.data.manifest import (
    DocumentCounts,
    DocumentManifest,
    SourceRecord,
    load_document_manifest,
    load_manifest,
    save_manifest,
)
from tallow.errors import DataError

MANIFEST = DocumentManifest(
    splits={"train": DocumentCounts(documents=1, bytes=4, parts=("part-00000.parquet",))},
    sources=(SourceRecord(name="a.txt", sha256="0" * 64, documents=1, bytes=4),),
    dropped={},
    rejected=0,
)


def test_round_trip(tmp_path: Path) -> None:
    save_manifest(MANIFEST, tmp_path)
    assert load_document_manifest(tmp_path) == MANIFEST


def test_the_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    save_manifest(MANIFEST, tmp_path)
    with pytest.raises(DataError, match="not a manifest of tokens") as caught:
        load_manifest(tmp_path)
    assert "encode" in caught.value.hint


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "is missing"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "not a manifest of documents"),
        (json.dumps({**MANIFEST.model_dump(mode="json"), "rejected": -1}), r"rejected: .* greater than or equal to 0"),
        (json.dumps({**MANIFEST.model_dump(mode="json"), "format": "tallow.documents.v2"}), "format"),
    ],
)
def test_broken_manifest_is_a_data_error(tmp_path: Path, raw: str | None, message: str) -> None:
    if raw is not None:
        (tmp_path / "manifest.json").write_text(raw)
    with pytest.raises(DataError, match=message):
        load_document_manifest(tmp_path)
