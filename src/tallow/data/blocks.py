"""What a data card is made of: blocks, of which Markdown and a page of HTML are made."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tallow.errors import DataError
from tallow.files import read_json, write_json

SPECIAL = re.compile(r"[\\`*_<>|\[\]]")
JSON_NAME = "card.json"


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


KINDS: dict[str, type[Heading] | type[Paragraph] | type[Table] | type[Excerpt]] = {
    kind.__name__.lower(): kind for kind in (Heading, Paragraph, Table, Excerpt)
}


def save_card(blocks: Sequence[Block], directory: Path) -> None:
    """Write `card.md`, `card.html`, and `card.json`, of which both can be made again."""
    (directory / "card.md").write_text(as_markdown(blocks), encoding="utf-8")
    (directory / "card.html").write_text(as_html(blocks), encoding="utf-8")
    write_json(directory / JSON_NAME, {"blocks": [[type(block).__name__.lower(), *block] for block in blocks]})


def load_card(directory: Path) -> list[Block]:
    """The blocks of a card; none if there is none.

    Raises:
        DataError: It is damaged.
    """
    path = directory / JSON_NAME
    if not path.is_file():
        return []
    try:
        return [_block(kind, values) for kind, *values in read_json(path, "data card")["blocks"]]
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a data card", "run the stage prepare again") from error


def _block(kind: str, values: list[Any]) -> Block:
    if kind == "table":
        columns, rows = values
        return Table(tuple(columns), tuple(tuple(row) for row in rows))
    return KINDS[kind](*values)


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
