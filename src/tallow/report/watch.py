"""A run in the terminal, as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tallow.report.live import StageView, Watch
from tallow.report.units import format_value

POLL_S = 1.0
# between two stages of a run nobody is at work for a moment
PATIENCE_S = 10.0
BARS = "▁▂▃▄▅▆▇█"
STYLES = {"running": "green", "finished": "bold", "stopped": "yellow"}
ANOMALIES_SHOWN = 3
SHOWN = {
    "loss": {"loss": "", "validation_loss": "held-out", "validation_bits_per_byte": "bits a byte"},
    "tokens": {"tokens": "", "tokens_per_s": "a second"},
    "speed": {"step_s": "a step", "mfu": "MFU", "data_wait": "waiting for data"},
    "health": {"gradient_norm": "gradient", "update_ratio": "update/weights", "activation_max": "largest activation"},
    "schedule": {"learning_rate": "learning rate"},
    "memory": {"memory_bytes": "", "peak_memory_bytes": "at most"},
    "GPU memory": {"gpu_bytes": "", "peak_gpu_bytes": "at most"},
    "slowest": {"slowest_rank": "is the process", "slowest_s": "a step by itself"},
}
"""Rows, and what stands in them: metric and word."""


def watch(
    directory: Path, console: Console, *, once: bool = False, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Show a run until nobody is at work in it any more; once, where the console is no terminal.

    Raises:
        DataError: There is no such run.
    """
    seen = Watch(directory)
    view = seen.look()
    if once or not console.is_terminal or view.status != "running":
        console.print(render(view, console.width))
        return
    idle_s = 0.0
    with Live(render(view, console.width), console=console, auto_refresh=False) as live:
        while idle_s < PATIENCE_S:
            sleep(POLL_S)
            view = seen.look()
            idle_s = 0.0 if view.status == "running" else idle_s + POLL_S
            live.update(render(view, console.width), refresh=True)


def render(view: StageView, width: int) -> RenderableType:
    """A stage as a few lines."""
    lines: list[RenderableType] = [_title(view)]
    if view.steps is not None:
        lines.append(_progress(view))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(view, max(10, width - 36)):
        table.add_row(name, Text(text))
    lines.append(table)
    return Group(*lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of block characters; each stands for the mean of its share of the values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    largest = max(map(abs, finite)) or 1.0  # else sums and differences could be infinite
    finite = [value / largest for value in finite]
    width = min(width, len(finite))
    edges = [number * len(finite) // width for number in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _title(view: StageView) -> Text:
    text = Text(f"{view.directory}", style="bold")
    text.append(f"  {view.status}", style=STYLES[view.status])
    if view.status == "running" and view.silent_s is not None and view.silent_s > 60:
        text.append(f", nothing new for {format_value('age_s', view.silent_s)}", style="yellow")
    return text


def _progress(view: StageView) -> RenderableType:
    assert view.steps is not None
    step = view.latest.get("step", 0)
    left = f"eta {format_value('eta_s', view.eta_s)}" if view.status == "running" and view.eta_s is not None else ""
    grid = Table.grid(padding=(0, 2))
    share = f"{step / max(1, view.steps):.0%}"
    grid.add_row(f"step {step:,} of {view.steps:,}", ProgressBar(view.steps, step, width=30), share, left)
    return grid


def _rows(view: StageView, width: int) -> list[tuple[str, str]]:
    curve = sparkline([loss for _, loss in view.losses], width)
    rows = [(title, _join(view, names, curve if title == "loss" else "")) for title, names in SHOWN.items()]
    return [(title, text) for title, text in [*rows, ("bad batches", _anomalies(view))] if text]


def _join(view: StageView, names: dict[str, str], more: str = "") -> str:
    parts = [f"{_value(name, view.latest[name])} {word}".strip() for name, word in names.items() if name in view.latest]
    return "  ".join([" · ".join(parts), more]).strip()


def _value(name: str, value: Any) -> str:
    if name in ("mfu", "data_wait") and isinstance(value, int | float):
        return f"{value:.1%}"
    if name in ("step_s", "slowest_s") and isinstance(value, int | float):
        return f"{value:.3g} s"
    return format_value(name, value)


def _anomalies(view: StageView) -> str:
    lines = [
        f"step {record.get('step')}: back to step {record.get('to')}"
        if record.get("action") == "rolled back"
        else f"step {record.get('step')}: {record.get('reason')}"
        for record in list(view.anomalies)[-ANOMALIES_SHOWN:]
    ]
    skipped = view.latest.get("skipped", 0)
    return "\n".join([f"{skipped} left out", *lines]) if skipped or lines else ""
