"""What of each benchmark is in a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from tallow.data.contamination.benchmarks import Items
from tallow.data.contamination.overlap import item_overlaps
from tallow.recipe import Section

LEVELS = (0.25, 0.5, 0.75, 1.0)
WORST = 20


class Found(Section):
    """An item, and the document that has most of it.

    Args:
        record: Number of the item in its file, from 1.
        overlap: With that document.
        document: Its id.
        source: Where the document came from.
        excerpt: Of the document, from a little before the first place that was found.
    """

    record: int
    overlap: float
    document: str
    source: str
    excerpt: str


class BenchmarkReport(Section):
    """One benchmark.

    Args:
        name: Of its file.
        items: In it.
        not_searched: Items that are too short, or have nothing of their own, to be looked for.
        touched: Items of which an n-gram was found.
        in_one_document: By overlap, the share of the items that were looked for of which some document has so much.
        in_all: Likewise, all documents taken together.
        worst: Items with the largest overlap with one document.
    """

    name: str
    items: int
    not_searched: int
    touched: int
    in_one_document: dict[str, float]
    in_all: dict[str, float]
    worst: tuple[Found, ...]


def merge_evidence(tables: Iterable[pa.Table]) -> dict[int, Mapping[str, object]]:
    """The best of several tables of `EVIDENCE` for each item, whatever their order."""
    best: dict[int, Mapping[str, object]] = {}
    for table in tables:
        for record in table.to_pylist():
            known = best.get(record["item"])
            if known is None or _rank(record) < _rank(known):
                best[record["item"]] = record
    return best


def _rank(record: Mapping[str, object]) -> tuple[float, object]:
    return -float(str(record["overlap"])), record["id"]


def make_report(
    items: Items, found: Iterable[np.ndarray[tuple[int], np.dtype[np.int64]]], evidence: Iterable[pa.Table]
) -> list[BenchmarkReport]:
    """The report of each benchmark.

    Args:
        items: What was looked for.
        found: N-grams that were found in each part.
        evidence: `EVIDENCE` of each part.
    """
    there = np.zeros(items.index.count, dtype=bool)
    for grams in found:
        there[grams] = True
    grams = np.flatnonzero(there)
    overlaps = item_overlaps(items, np.zeros(len(grams), dtype=np.int64), grams)
    together = np.zeros(len(items.records), dtype=np.float32)
    together[overlaps.items] = overlaps.values
    best = merge_evidence(evidence)
    alone = np.zeros(len(items.records), dtype=np.float32)
    for item, record in best.items():
        alone[item] = float(str(record["overlap"]))
    reports = []
    for number, name in enumerate(items.names):
        own = items.benchmarks == number
        searched = own & items.searched
        count = max(1, int(searched.sum()))
        order = np.lexsort((items.records, -alone))
        worst: list[int] = order[own[order] & (alone[order] > 0)].tolist()[:WORST]
        reports.append(
            BenchmarkReport(
                name=name,
                items=int(own.sum()),
                not_searched=int(own.sum() - searched.sum()),
                touched=int((together[searched] > 0).sum()),
                in_one_document={str(level): int((alone[searched] >= level).sum()) / count for level in LEVELS},
                in_all={str(level): int((together[searched] >= level).sum()) / count for level in LEVELS},
                worst=tuple(_found(int(items.records[item]), best[item]) for item in worst),
            )
        )
    return reports


def _found(record: int, evidence: Mapping[str, object]) -> Found:
    document = evidence["id"]
    assert isinstance(document, bytes)
    return Found(
        record=record,
        overlap=round(float(str(evidence["overlap"])), 4),
        document=document.hex(),
        source=str(evidence["source"]),
        excerpt=str(evidence["excerpt"]),
    )


def as_markdown(reports: Iterable[BenchmarkReport]) -> str:
    """A table of all benchmarks, and below it the worst items of each."""
    reports = list(reports)
    heads = ["benchmark", "items", "not searched", "touched", *(f"≥ {level:.0%} in a document" for level in LEVELS)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for report in reports:
        shares = [f"{share:.2%}" for share in report.in_one_document.values()]
        counts = [f"{count:,}" for count in (report.items, report.not_searched, report.touched)]
        lines.append("| " + " | ".join([_cell(report.name), *counts, *shares]) + " |")
    for report in reports:
        if report.worst:
            lines += ["", f"### {report.name}", ""]
            lines += ["| item | overlap | document | source | excerpt |", "|---|---:|---|---|---|"]
        for each in report.worst:
            cells = [f"{each.record}", f"{each.overlap:.0%}", each.document, _cell(each.source), _cell(each.excerpt)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
