"""What commands print: one table of names and values, or one object with `--json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tallow.exits import escape, print_json


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """A result, as it was asked for."""
    if as_json:
        print_json(result)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in result.items():
        table.add_row(f"[bold]{escape(key)}[/bold]", escape(format_value(value)))
    Console(highlight=False).print(table, soft_wrap=True)


def print_beside(result: dict[str, Any], sides: Sequence[str], as_json: bool) -> None:
    """A result in which some names have alike measurements: these in columns beside each other, below the rest."""
    if as_json:
        print_json(result)
        return
    print_result({key: value for key, value in result.items() if key not in sides}, as_json)
    table = Table("", *sides, box=None, pad_edge=False)
    for name in result[sides[0]]:
        values = [escape(format_value(result[side][name])) for side in sides]
        table.add_row(f"[bold]{escape(name.replace('_', ' '))}[/bold]", *values)
    for column in table.columns[1:]:
        column.justify = "right"
    Console(highlight=False).print(table, soft_wrap=True)


def format_value(value: Any) -> str:
    """A value as people read it: thousands parted, four digits of a fraction."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
