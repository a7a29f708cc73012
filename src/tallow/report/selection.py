"""What was chosen of instructions, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def selection_tables(found: Mapping[str, Any]) -> Group:
    """The report of `write_chosen`: numbers, how many of which scores were taken, the best and the worst samples."""
    numbers = Table(show_header=False, box=None, pad_edge=False)
    for name in ("path", "selected", "examples", "records", "score"):
        numbers.add_row(f"[bold]{name}[/bold]", escape(_told(found[name])))
    for reason, count in found["left_out"].items():
        numbers.add_row("[bold]left out[/bold]", escape(f"{count:,}: {reason}"))
    ranges = Table("score from", "to", "examples", "selected", box=None, pad_edge=False)
    for each in found["ranges"]:
        ranges.add_row(*(_told(each[name]) for name in ("from", "to", "examples", "selected")))
    for column in ranges.columns:
        column.justify = "right"
    parts: list[Table | Text] = [numbers, Text(), ranges]
    for name in ("best", "worst"):
        for sample in found[name]:
            fate = "selected" if sample["selected"] else "not selected"
            parts += [
                Text(),
                Text(f"{name}: {_told(sample['score'])}, {sample['place']}, {fate}", style="bold"),
                Text(json.dumps(sample["record"], ensure_ascii=False, indent=1)),
            ]
    return Group(*parts)


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
