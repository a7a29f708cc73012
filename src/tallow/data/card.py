"""The data card: what a corpus is made of, what was left out and why, with samples to read.

It holds no time and no machine, so the same corpus has the same card. Prepared documents have it in bytes; the stage
encode adds tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import pyarrow as pa

from tallow.data.blocks import Block, Excerpt, Heading, Paragraph, Table
from tallow.data.config import PrepareConfig
from tallow.data.drops import drop_table
from tallow.data.duplicates.minhash import detection_probability
from tallow.data.examine import Examined
from tallow.data.manifest import DocumentManifest
from tallow.data.privacy.scrub import scrub
from tallow.data.steps.judge import NOTHING_OF_LINES
from tallow.data.steps.lines import BYTES, DROPPED
from tallow.data.steps.tally import KEPT
from tallow.recipe import dump_recipe

NOT_STATED = "not stated"
DROPS_HEADING = "What was dropped"
SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SAMPLES = 5


def describe(config: PrepareConfig, found: Examined, manifest: DocumentManifest) -> list[Block]:
    """The card of what the stage prepare has made."""
    groups = found.groups().to_pylist()
    kept = [group for group in groups if group["fate"] == KEPT]
    read = sum(source.documents for source in manifest.sources), sum(source.bytes for source in manifest.sources)
    stay = _total(kept, "left")
    blocks: list[Block] = [
        Heading("Data card", 1),
        Paragraph(
            f"{read[0]:,} documents ({_size(read[1])}) were read; {stay[0]:,} ({_size(stay[1])}) are kept, "
            f"{manifest.splits['validation'].documents:,} of them held out for validation. "
            f"{found.rejected.bad:,} records could not be used."
        ),
        Heading("Sources"),
        _sources(config, kept, manifest),
    ]
    if any(group["language"] is not None for group in groups):
        blocks += [Heading("Languages"), _languages(groups, kept)]
    blocks += [Heading(DROPS_HEADING), Paragraph(DROPS), _drops(found)]
    blocks += _lines(found)
    blocks += _near(config, found)
    blocks += _contamination(config, found)
    blocks += _edits(found)
    blocks += _private(config, found)
    blocks += [Heading("Samples"), Paragraph("Chosen by a hash of their ids, the same ones each time.")]
    blocks += _samples(found)
    hashes = tuple((source.name, source.sha256) for source in manifest.sources)
    blocks += [Heading("Files"), Table(("file", "SHA-256"), hashes)]
    recipe = dump_recipe({"prepare": config.result_settings()})
    return [*blocks, Heading("Recipe"), Excerpt("What this was made with; it makes the same again.", recipe)]


DROPS = (
    "Of the rules for single documents: how many each one dropped (first), how many it would have dropped, had it been "
    "asked first (all), and how many nothing else would have dropped (alone). What comes after them is asked only of "
    "what is left by then."
)


def _drops(found: Examined) -> Table:
    sizes = Counter[str]()
    for row in found.groups().to_pylist():
        sizes[row["fate"]] += row["bytes"]
    rows = ((*drop[:2], sizes[drop.reason], *drop[2:]) for drop in drop_table(found))
    shown = tuple(tuple("" if value is None else value for value in row) for row in rows)
    return Table(("reason", "first", "bytes of these", "all", "alone"), shown)


def _lines(found: Examined) -> Iterable[Block]:
    if "lines" not in found.columns:
        return
    counts = Counter[str]()
    for part in found.parts:
        counts.update({name: int(count) for name, count in part.counts.items()})
    dropped = {name.removeprefix(DROPPED): count for name, count in counts.items() if name.startswith(DROPPED)}
    yield Heading("Lines that were dropped first")
    yield Paragraph(
        f"They took {counts[BYTES]:,} bytes of all documents. Languages and rules are about what is left; what has no "
        f"line left is told as “{NOTHING_OF_LINES}”."
    )
    yield Table(("reason", "lines"), tuple(sorted((name, count) for name, count in dropped.items() if count)))


def _near(config: PrepareConfig, found: Examined) -> list[Block]:
    if config.near_duplicates is None:
        return []
    settings = config.near_duplicates
    chances = detection_probability(SIMILARITIES, settings.bands, settings.rows).tolist()
    curve = tuple((s, round(chance, 4)) for s, chance in zip(SIMILARITIES, chances, strict=True))
    counts = found.near
    sizes = sorted((int(name.split()[1]), count) for name, count in counts.items() if name.startswith("size "))
    return [
        Heading("Near-duplicates"),
        Paragraph(
            f"Shingles of {settings.shingle_words} words, {settings.bands} bands of {settings.rows} rows; pairs are "
            f"verified: they share at least {settings.threshold:.0%} of their shingles (Jaccard). In shingles all "
            "numbers are alike, and case, accents and punctuation do not count. "
            f"{counts['comparisons']:,} pairs were compared; {counts['uncompared']:,} "
            "documents in large buckets were not. Clusters are of all documents, also of those that rules drop."
        ),
        Table(("similarity", "chance that such a pair is found"), curve),
        Table(("documents in a cluster", "clusters"), tuple(sizes)),
    ]


def _contamination(config: PrepareConfig, found: Examined) -> Iterable[Block]:
    if found.contamination is None:
        return
    reports = found.contamination.report()
    levels = tuple(reports[0].in_one_document)
    heads = (
        "benchmark",
        "items",
        "not searched",
        "touched",
        *(f"≥ {float(level):.0%} in a document" for level in levels),
    )
    rows = tuple(
        (report.name, report.items, report.not_searched, report.touched, *_percents(report.in_one_document.values()))
        for report in reports
    )
    yield Heading("Items of benchmarks")
    yield Paragraph("In all documents that were read, also in those that are dropped.")
    yield Table(heads, rows)
    for report in reports:
        for each in report.worst[:SAMPLES]:
            text = each.excerpt
            if config.privacy is not None:
                [text] = scrub(pa.array([text]), config.privacy).texts.to_pylist()
            yield Excerpt(f"{report.name}, item {each.record}: {each.overlap:.0%}, in {each.source}", text)


def _percents(shares: Iterable[float]) -> Iterator[str]:
    return (f"{share:.2%}" for share in shares)


def _edits(found: Examined) -> Iterable[Block]:
    counts = Counter[str]()
    for part in found.repeated:
        counts.update({name: int(count) for name, count in part.counts.items()})
    if found.repeated:
        yield Heading("Repeated passages")
        kept = [group for group in found.groups().to_pylist() if group["fate"] == KEPT]
        lines = " and the rules for lines" if "lines" in found.columns else ""
        cut = sum(group["bytes"] - group["left"] for group in kept)
        yield Paragraph(
            f"{counts['repeated_bytes']:,} bytes of what occurs before were found in what rules and duplicates leave. "
            f"What is kept in the end has lost {cut:,} bytes by all edits{lines} together."
        )


def _private(config: PrepareConfig, found: Examined) -> list[Block]:
    if config.privacy is None:
        return []
    counts = Counter[str]()
    for tally in found.tallies:
        for name, count in tally.counts.items():
            if name.startswith("private "):
                counts[name.removeprefix("private ")] += int(count)
    rows = tuple((kind, counts[kind], config.privacy.of(kind).action) for kind in config.privacy.sought)
    blocks: list[Block] = [Heading("Private things")]
    if found.repeated or "contamination" in found.columns:
        blocks.append(
            Paragraph("Some are in passages that are cut out of these documents, so fewer placeholders are left.")
        )
    return [*blocks, Table(("kind", "in documents that are kept", "action"), rows)]


def samples(found: Examined) -> list[dict[str, Any]]:
    """Some documents of each fate (`SAMPLES` of the step tally), `kept` first, then by name."""
    rows = pa.concat_tables(part.read() for part in found.samples).to_pylist() if found.samples else []
    rows.sort(key=lambda row: (row["fate"] != KEPT, row["fate"], row["rank"], row["id"]))
    seen = Counter[str]()
    chosen: list[dict[str, Any]] = []
    for row in rows:
        seen[row["fate"]] += 1
        if seen[row["fate"]] <= SAMPLES:
            chosen.append({**row, "columns": json.loads(row["columns"])})
    return chosen


def _samples(found: Examined) -> Iterable[Block]:
    fate = None
    for row in samples(found):
        if row["fate"] != fate:
            fate = row["fate"]
            yield Heading(fate, 3)
        about = [row["source"]]
        if (language := row["columns"].get("language")) is not None:
            about.append(language)
        if (why := _why(row)) is not None:
            about.append(why)
        yield Excerpt(", ".join(about), row["text"])


def _why(row: dict[str, Any]) -> str | None:
    """The number that a rule has dropped a document for, if it is one."""
    family, _, rule = row["fate"].rpartition(".")
    column = f"{family}.{rule.removeprefix('min_').removeprefix('max_')}"
    for name in (column, family, row["fate"]):
        if name in row["columns"]:
            return f"{name} = {row['columns'][name]}"
    return None


def _sources(config: PrepareConfig, kept: Sequence[dict[str, Any]], manifest: DocumentManifest) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for source in sorted(manifest.sources, key=lambda source: source.name):
        documents, size = _total([group for group in kept if group["source"] == source.name], "left")
        licence = _licence(source.name, config)
        rows.append((source.name, source.documents, documents, source.bytes, size, licence))
    return Table(("source", "documents read", "kept", "bytes read", "kept", "licence"), tuple(rows))


def _languages(groups: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for name in sorted({group["language"] for group in groups}):
        read = _total([group for group in groups if group["language"] == name], "bytes")
        stay = _total([group for group in kept if group["language"] == name], "left")
        rows.append((name, read[0], stay[0], read[1], stay[1]))
    return Table(("language", "documents", "kept", "bytes", "kept"), tuple(rows))


def _total(groups: Iterable[dict[str, Any]], size: str) -> tuple[int, int]:
    groups = list(groups)
    return sum(group["documents"] for group in groups), sum(group[size] for group in groups)


def _licence(source: str, config: PrepareConfig) -> str:
    return next((licence for pattern, licence in config.licences.items() if fnmatch(source, pattern)), NOT_STATED)


def _size(size: int) -> str:
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def with_tokens(card: Sequence[Block], groups: pa.Table) -> list[Block]:
    """The card with tokens by source and language, before what was dropped.

    Args:
        card: Of the documents; it may have no blocks.
        groups: Columns `source`, `language`, `documents`, `tokens` and `bytes`.
    """
    rows: list[tuple[str | int | float | None, ...]] = []
    for row in groups.sort_by([("source", "ascending"), ("language", "ascending")]).to_pylist():
        share = round(row["bytes"] / row["tokens"], 3)
        rows.append((row["source"], row["language"] or NOT_STATED, row["documents"], row["tokens"], share))
    heads = ("source", "language", "documents", "tokens", "bytes per token")
    added: list[Block] = [Heading("Tokens"), Paragraph(TOKENS), Table(heads, tuple(rows))]
    if not card:
        return [Heading("Data card", 1), *added]
    place = next((n for n, block in enumerate(card) if block == Heading(DROPS_HEADING)), len(card))
    return [*card[:place], *added, *card[place:]]


TOKENS = "Of what is kept, the token that ends each document among them."
