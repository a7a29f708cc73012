"""Which of documents that are alike stays depends on nothing but their ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from tests.data.steps.corpora import MAKE, Texts, drop_short

from tallow.data.read import Document
from tallow.data.steps.unique import unique
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work


def kept(directory: Path, parts: Sequence[Sequence[tuple[int, str]]], part_bytes: int) -> tuple[list[bytes], int]:
    """Ids of those that stay, and how many were dropped as copies."""
    work = Work(directory, LocalEngine(1))
    made = [part for [part] in work.each(MAKE, [(Texts(texts=tuple(texts)), ()) for texts in parts])]
    verdicts = drop_short(work, made)
    verdicts = unique(work, made, verdicts, made, "digest", "copy", part_bytes)
    stay: list[bytes] = []
    for part, verdict in zip(made, verdicts, strict=True):
        reasons = verdict.read().column("dropped_by").to_pylist()
        ids = part.read().column("id").to_pylist()
        stay += [id for id, reason in zip(ids, reasons, strict=True) if reason is None]
    return stay, sum(int(verdict.counts["copy"]) for verdict in verdicts)


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_id_stays_however_documents_are_parted(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    texts = [(offset, f"text {chance.randrange(40)}" if offset % 9 else "?") for offset in range(200)]
    best: dict[str, str] = {}
    for offset, text in texts:
        if len(text) > 1:
            made = Document.make(text, "a", offset)
            best[text] = min(best.get(text, made.id), made.id)
    expected = sorted(bytes.fromhex(id) for id in best.values())
    for way in range(3):
        cuts = sorted(chance.sample(range(201), 2 * way))
        parts = [texts[begin:end] for begin, end in zip([0, *cuts], [*cuts, 200], strict=True)]
        if way == 2:
            chance.shuffle(parts)
        stay, copies = kept(tmp_path / str(way), parts, part_bytes=[1 << 20, 2000, 700][way])
        assert sorted(stay) == expected
        assert copies == sum(len(text) > 1 for _, text in texts) - len(expected)


def test_digests_are_those_of_texts() -> None:
    [made] = MAKE.function(Texts(texts=((0, "text"),)), ())
    assert not isinstance(made.table, Sequence)
    assert made.table["digest"][0].as_py() == sha256(b"text").digest()[:16]
