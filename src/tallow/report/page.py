"""One HTML page a run: what was built, how it learned, what it says, what it cost, where it came from; one a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from tallow.files import write_text
from tallow.report.load import PERCENTILES, LogSummary
from tallow.report.plots import bars, load_curves, training_curves
from tallow.report.summary import RunSummary, cost_cells
from tallow.report.units import format_value


def write_report(summary: RunSummary) -> Path:
    """Write `report.html` into the run directory; the page needs no other file and no network.

    Raises:
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    curves = {stage.name: training_curves(stage.metrics) for stage in summary.stages}
    quality = {name: scores["bits_per_byte"] for name, scores in summary.evaluation.items()}
    text = _render(
        "page.html",
        summary=summary,
        curves={name: Markup(svg) for name, svg in curves.items() if svg is not None},
        quality=Markup(bars(quality, "bits per byte on held-out text (less is better)")) if quality else None,
        cost_cells=cost_cells,
        settings={
            stage.name: yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True) for stage in summary.stages
        },
    )
    path = summary.directory / "report.html"
    write_text(path, text)
    return path


def write_log_report(summary: LogSummary) -> Path:
    """Write a page beside the log, named as it is, that needs no other file and no network.

    Raises:
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    page = summary.path.with_name(f"{summary.path.name}.html")
    text = _render(
        "load.html",
        name=summary.path.name,
        figures=summary.as_json(),
        curves=Markup(load_curves(summary.load())),
        percentiles=[f"p{percent}" for percent in PERCENTILES] + ["max"],
        groups={
            "model": summary.groups(lambda request: request.model),
            "API": summary.groups(lambda request: request.api),
            "key": summary.groups(lambda request: request.key or "none"),
            "status": summary.groups(lambda request: request.status),
        },
    )
    write_text(page, text)
    return page


def _render(template: str, **values: Any) -> str:
    """A page from a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tallow.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(format_value=format_value, **values)
