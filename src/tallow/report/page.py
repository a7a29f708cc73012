"""One HTML page a run: what was built, how it learned, what it says, what it cost, where it came from."""

from __future__ import annotations

from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from tallow.files import write_text
from tallow.report.plots import bars, training_curves
from tallow.report.summary import RunSummary, cost_cells
from tallow.report.units import format_value


def write_report(summary: RunSummary) -> Path:
    """Write `report.html` into the run directory; the page needs no other file and no network.

    Raises:
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tallow.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    curves = {stage.name: training_curves(stage.metrics) for stage in summary.stages}
    quality = {name: scores["bits_per_byte"] for name, scores in summary.evaluation.items()}
    text = environment.get_template("page.html").render(
        summary=summary,
        curves={name: Markup(svg) for name, svg in curves.items() if svg is not None},
        quality=Markup(bars(quality, "bits per byte on held-out text (less is better)")) if quality else None,
        cost_cells=cost_cells,
        format_value=format_value,
        settings={
            stage.name: yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True) for stage in summary.stages
        },
    )
    path = summary.directory / "report.html"
    write_text(path, text)
    return path
