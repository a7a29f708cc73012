"""The data card: what a corpus is made of, what was left out and why, with samples to read.

A card is a list of blocks, of which Markdown and a page of HTML are made. It holds no
time and no machine, so the same corpus has the same card.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import pyarrow as pa

from tallow.data.config import PrepareConfig
from tallow.data.drops import drop_table
from tallow.data.duplicates.minhash import detection_probability
from tallow.data.examine import Examined
from tallow.data.manifest import DocumentManifest
from tallow.data.steps.tally import KEPT
from tallow.recipe import dump_recipe

NOT_STATED = "not stated"
SPECIAL = re.compile(r"[\\`*_<>|\[\]]")
SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SAMPLES = 5


class Heading(NamedTuple):
    text: str
    level: int = 2


class Paragraph(NamedTuple):
    text: str


class Table(NamedTuple):
    """Numbers are set to the right, and thousands parted."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


class Excerpt(NamedTuple):
    """Something to be read as it stands, with what is said of it."""

    caption: str
    text: str


Block = Heading | Paragraph | Table | Excerpt


def describe(config: PrepareConfig, found: Examined, manifest: DocumentManifest) -> list[Block]:
    """The card of what the stage prepare has made."""
    groups = found.groups().to_pylist()
    kept = [group for group in groups if group["fate"] == KEPT]
    read, stay = _total(groups), _total(kept)
    blocks: list[Block] = [
        Heading("Data card", 1),
        Paragraph(
            f"{read[0]:,} documents ({_megabytes(read[1])}) were read; {stay[0]:,} ({_megabytes(stay[1])}) are kept, "
            f"{manifest.splits['validation'].documents:,} of them held out for validation. "
            f"{found.rejected.bad:,} records could not be used."
        ),
        Heading("Sources"),
        _by("source", groups, kept, [("licence", lambda name: _licence(name, config))]),
    ]
    if any(group["language"] is not None for group in groups):
        blocks += [Heading("Languages"), _by("language", groups, kept, [])]
    blocks += [Heading("What was dropped"), Paragraph(DROPS), _drops(found)]
    if found.dropped_lines:
        lines = tuple(sorted((name, count) for name, count in found.dropped_lines.items() if count))
        blocks += [Heading("Lines that were dropped first"), Table(("reason", "lines"), lines)]
    blocks += _near(config, found)
    blocks += _contamination(found)
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
    "asked first (all), and how many nothing else would have dropped (alone). Duplicates are sought among the rest."
)


def _drops(found: Examined) -> Table:
    rows = tuple((row.reason, row.first, row.all, row.alone) for row in drop_table(found))
    return Table(("reason", "first", "all", "alone"), rows)


def _near(config: PrepareConfig, found: Examined) -> list[Block]:
    if config.near_duplicates is None or found.clusters is None:
        return []
    settings = config.near_duplicates
    chances = detection_probability(SIMILARITIES, settings.bands, settings.rows).tolist()
    curve = tuple((s, round(chance, 4)) for s, chance in zip(SIMILARITIES, chances, strict=True))
    counts = found.clusters.counts
    sizes = sorted((int(name.split()[1]), int(count)) for name, count in counts.items() if name.startswith("size "))
    return [
        Heading("Near-duplicates"),
        Paragraph(
            f"Shingles of {settings.shingle_words} words, {settings.bands} bands of {settings.rows} rows; pairs are "
            f"verified: they share at least {settings.threshold:.0%} of their shingles (Jaccard). "
            f"{int(counts.get('comparisons', 0)):,} pairs were compared; {int(counts.get('uncompared', 0)):,} "
            "documents in large buckets were not. Clusters are of all documents, also of those that rules drop."
        ),
        Table(("similarity", "chance that such a pair is found"), curve),
        Table(("documents in a cluster", "clusters"), tuple(sizes)),
    ]


def _contamination(found: Examined) -> Iterable[Block]:
    if not found.contamination:
        return
    levels = tuple(found.contamination[0].in_one_document)
    heads = (
        "benchmark",
        "items",
        "not searched",
        "touched",
        *(f"≥ {float(level):.0%} in a document" for level in levels),
    )
    rows = tuple(
        (report.name, report.items, report.not_searched, report.touched, *_percents(report.in_one_document.values()))
        for report in found.contamination
    )
    yield Heading("Items of benchmarks")
    yield Paragraph("In all documents that were read, also in those that are dropped.")
    yield Table(heads, rows)
    for report in found.contamination:
        for each in report.worst[:SAMPLES]:
            yield Excerpt(f"{report.name}, item {each.record}: {each.overlap:.0%}, in {each.source}", each.excerpt)


def _percents(shares: Iterable[float]) -> Iterator[str]:
    return (f"{share:.2%}" for share in shares)


def _edits(found: Examined) -> Iterable[Block]:
    counts = Counter[str]()
    for part in found.repeated:
        counts.update({name: int(count) for name, count in part.counts.items()})
    if found.repeated:
        yield Heading("Repeated passages")
        yield Paragraph(f"{counts['repeated_bytes']:,} bytes of what occurs before are cut out of what is kept.")


def _private(config: PrepareConfig, found: Examined) -> list[Block]:
    if config.privacy is None:
        return []
    counts = Counter[str]()
    for tally in found.tallies:
        for name, count in tally.counts.items():
            if name.startswith("private "):
                counts[name.removeprefix("private ")] += int(count)
    rows = tuple((kind, counts[kind], config.privacy.of(kind).action) for kind in config.privacy.sought)
    return [Heading("Private things"), Table(("kind", "in documents that are kept", "action"), rows)]


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


def _by(key: str, groups: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]], more: Sequence[Any]) -> Table:
    names = sorted({group[key] or NOT_STATED for group in groups})
    rows: list[tuple[str | int | float | None, ...]] = []
    for name in names:
        read = _total([group for group in groups if (group[key] or NOT_STATED) == name])
        stay = _total([group for group in kept if (group[key] or NOT_STATED) == name])
        rows.append((name, read[0], stay[0], read[1], stay[1], *(tell(name) for _, tell in more)))
    titles = (key, "documents read", "kept", "bytes read", "kept", *(title for title, _ in more))
    return Table(titles, tuple(rows))


def _total(groups: Iterable[dict[str, Any]]) -> tuple[int, int]:
    groups = list(groups)
    return sum(group["documents"] for group in groups), sum(group["bytes"] for group in groups)


def _licence(source: str, config: PrepareConfig) -> str:
    return next((licence for pattern, licence in config.licences.items() if fnmatch(source, pattern)), NOT_STATED)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def as_markdown(blocks: Iterable[Block]) -> str:
    """The card as Markdown (with GitHub's tables)."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case Paragraph(text):
            return text
        case Table(columns, rows):
            numeric = _numeric(block)
            rule = " | ".join("---:" if number else "---" for number in numeric)
            lines = [" | ".join(columns), rule, *(" | ".join(_escaped(_cell(cell)) for cell in row) for row in rows)]
            return "\n".join(f"| {line} |" for line in lines)
        case Excerpt(caption, text):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{_escaped(caption)}\n\n{fence}text\n{text}\n{fence}"


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\`*_<>|[]" else character for character in text).replace(
        "\n", " "
    )


def as_html(blocks: Sequence[Block]) -> str:
    """The card as one page, without scripts and without anything from elsewhere."""
    title = html.escape(next((block.text for block in blocks if isinstance(block, Heading)), ""))
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n{STYLE}\n{body}\n</html>\n'
    )


STYLE = """<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8886; text-align: start; }
.number { text-align: end; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: 0.6rem; max-height: 24rem;
  overflow-y: auto; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } }
</style>"""


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(columns, rows):
            numeric = [' class="number"' if number else "" for number in _numeric(block)]
            head = _html_row("th", columns, numeric)
            return "\n".join(["<table>", head, *(_html_row("td", row, numeric) for row in rows), "</table>"])
        case Excerpt(caption, text):
            return f'<p>{html.escape(caption)}</p>\n<pre dir="auto">{html.escape(text)}</pre>'


def _html_row(tag: str, row: Sequence[Any], classes: Sequence[str]) -> str:
    cells = (f"<{tag}{kind}>{html.escape(_cell(cell))}</{tag}>" for cell, kind in zip(row, classes, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _numeric(table: Table) -> list[bool]:
    return [
        bool(table.rows) and all(isinstance(row[number], int | float) for row in table.rows)
        for number in range(len(table.columns))
    ]


def _cell(cell: str | int | float | None) -> str:
    match cell:
        case None:
            return ""
        case int():
            return f"{cell:,}"
        case _:
            return str(cell)
