"""Small corpora as parts, cut this way and that."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.read import Document
from tallow.data.steps.judge import JUDGE, JudgeConfig
from tallow.data.steps.measure import SIZES, SizesStep
from tallow.data.steps.read import documents_table
from tallow.data.work.engines import LocalEngine
from tallow.data.work.step import Made, Part, Step
from tallow.data.work.work import Work
from tallow.recipe import Section


class Texts(Section):
    texts: tuple[tuple[int, str], ...]


def _make(config: Texts, _: Sequence[pa.Table]) -> list[Made]:
    return [Made(documents_table([Document.make(text, "a", offset) for offset, text in config.texts]))]


MAKE = Step(f"{__name__}:MAKE", 1, Texts, _make)


def make_parts(work: Work, texts: Sequence[Sequence[str]]) -> tuple[list[Part], list[Part]]:
    """Parts with these texts, and verdicts beside them: those of one character are dropped."""
    offset = 0
    given = []
    for some in texts:
        given.append((Texts(texts=tuple(enumerate(some, offset))), ()))
        offset += len(some)
    made = [part for [part] in work.each(MAKE, given)]
    return made, drop_short(work, made)


def drop_short(work: Work, parts: Sequence[Part]) -> list[Part]:
    """Verdicts: documents of one character are dropped."""
    sizes = [part for [part] in work.each(SIZES, [(SizesStep(), [part]) for part in parts])]
    rules = JudgeConfig(min_chars=2)
    return [part for [part] in work.each(JUDGE, [(rules, [part]) for part in sizes])]


def ways_to_part(texts: Sequence[str], seed: int) -> Iterator[tuple[list[list[str]], int]]:
    """The same texts, in the same order, as one part, as several, as many, one of which is empty; sizes of buckets."""
    chance = random.Random(seed)
    for cuts, part_bytes in ((0, 1 << 20), (2, 3000), (4, 1000)):
        bounds = sorted(chance.sample(range(len(texts)), cuts))
        parts = [list(texts[begin:end]) for begin, end in zip([0, *bounds], [*bounds, len(texts)], strict=True)]
        if cuts > 2:
            parts.insert(3, [])
        yield parts, part_bytes


def by_text(parts: Sequence[Part], beside: Sequence[Part], column: str) -> list[tuple[bytes, str, Any]]:
    """Ids, texts, and a column beside them, in the order of ids."""
    rows = []
    for part, other in zip(parts, beside, strict=True):
        table = part.read()
        values = other.read().column(column).to_pylist()
        rows += zip(table.column("id").to_pylist(), table.column("text").to_pylist(), values, strict=True)
    return sorted(rows, key=lambda row: row[0])


def same_with_two_processes(
    directory: Path, texts: Sequence[Sequence[str]], make: Callable[[Work, Any, Any], Any]
) -> bool:
    """Whether `make(work, parts, verdicts)` gives parts of the same bytes with one process and with two."""
    found = []
    for processes in (1, 2):
        below = directory / str(processes)
        parts, verdicts = make_parts(Work(below, LocalEngine(1)), texts)
        with LocalEngine(processes) as engine:
            made = make(Work(below, engine), parts, verdicts)
        found.append([part.path.read_bytes() for part in made])
    return found[0] == found[1] and bool(found[0])
