"""What several steps have found is cut out of documents at once."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tests.data.steps.corpora import make_parts

from tallow.data.duplicates.substrings import SubstringSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.steps.cut import cut_documents
from tallow.data.steps.substrings import repeated_substrings
from tallow.data.steps.units import repeated_units
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work


def test_texts_are_without_what_is_found_again(tmp_path: Path) -> None:
    line, passage = "a line of some length\n", "what is said here is said once more elsewhere"
    texts = [f"{line}one {passage}!", f"{line}two {passage}?", "three é\n"]
    work = Work(tmp_path, LocalEngine(1))
    parts, verdicts = make_parts(work, [texts, []])
    lines = repeated_units(work, parts, verdicts, UnitSettings(min_chars=10), 1000)
    substrings = repeated_substrings(work, parts, verdicts, SubstringSettings(min_bytes=30), 1000)
    cut, empty = cut_documents(work, parts, [lines, substrings])
    before, after = parts[0].read().to_pylist(), cut.read().to_pylist()
    first, second = sorted(before[:2], key=lambda row: row["id"])
    expected = {row["id"]: row["text"] for row in before}
    expected[second["id"]] = second["text"].removeprefix(line).replace(f" {passage}", "")
    assert {row["id"]: row["text"] for row in after} == expected
    assert expected[first["id"]] == first["text"]
    for row, old in zip(after, before, strict=True):
        assert row["digest"] == sha256(row["text"].encode()).digest()[:16]
        assert row | {"text": "", "digest": b""} == old | {"text": "", "digest": b""}
    assert cut.counts == {"cut_documents": 1, "cut_bytes": len(line) + 1 + len(passage)}
    assert empty.counts == {"cut_documents": 0, "cut_bytes": 0}
    assert empty.rows == 0
