"""Items of benchmarks in documents: what was found beside each, a report, and what is dropped or cut for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.contamination.benchmarks import Search, load_items
from tallow.data.contamination.overlap import annotate
from tallow.data.contamination.report import BenchmarkReport, make_report
from tallow.data.contamination.rule import CONTAMINATED, ContaminationRule, judge
from tallow.data.edits import EDITS
from tallow.data.steps.tables import VERDICTS, kept, texts_of
from tallow.data.work.step import Made, Part, Step, beside
from tallow.data.work.work import Work

JUDGED = pa.schema([*VERDICTS, ("edits", EDITS)])
"""Beside a part: what has dropped each document, and what is to be cut out of its text."""


class Contamination(NamedTuple):
    """What was found of benchmarks, which are read again only for the report.

    Args:
        columns: Beside the documents.
        evidence: Where it was found.
        grams: The n-grams that were.
        search: For what.
    """

    columns: list[Part]
    evidence: list[Part]
    grams: list[Part]
    search: Search

    def report(self) -> list[BenchmarkReport]:
        """What of each benchmark is in all documents, those that something else drops among them.

        Raises:
            DataError, UsageError: As of `load_items`.
        """
        found = (part.read().column("gram").to_numpy() for part in self.grams)
        return make_report(load_items(self.search), found, (part.read() for part in self.evidence))


def find_contamination(work: Work, parts: Sequence[Part], search: Search) -> Contamination:
    """Seek items of benchmarks in documents.

    Raises:
        DataError, UsageError: As of `load_items`.
    """
    made = work.each(FIND, [(search, [part]) for part in parts])
    columns, evidence, grams = ([tables[number] for tables in made] for number in range(3))
    return Contamination(columns, evidence, grams, search)


def judge_contamination(
    work: Work, parts: Sequence[Part], verdicts: Sequence[Part], columns: Sequence[Part], rule: ContaminationRule
) -> list[Part]:
    """New verdicts (`JUDGED`): documents that have too much of an item are dropped, or cut."""
    given = [(rule, inputs) for inputs in beside(parts, verdicts, columns)]
    return [made for [made] in work.each(JUDGE, given)]


def _find(config: Search, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Columns beside documents, evidence, and the n-grams found."""
    [documents] = tables
    columns, evidence, grams = annotate(documents, texts_of(documents), load_items(config))
    yield Made(columns)
    yield Made(evidence)
    yield Made(pa.table({"gram": grams}))


def _judge(config: ContaminationRule, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, verdicts, columns = tables
    dropped, edits = judge(texts_of(documents), columns, config)
    dropped &= kept(verdicts)
    reasons = pc.call_function("if_else", [pa.array(dropped), pa.scalar(CONTAMINATED), verdicts.column("dropped_by")])
    counts = {CONTAMINATED: int(dropped.sum()), "cut": int(np.count_nonzero(_lengths(edits)))}
    yield Made(pa.table([reasons, edits], schema=JUDGED), counts)


def _lengths(lists: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return pc.call_function("list_value_length", [lists]).to_numpy(zero_copy_only=False)


FIND = Step(f"{__name__}:FIND", 2, Search, _find)
JUDGE = Step(f"{__name__}:JUDGE", 1, ContaminationRule, _judge)
