"""What a run has built, how good it is and what it cost, read from its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tallow.errors import DataError
from tallow.files import read_json
from tallow.recipe import load_recipe
from tallow.report.units import format_value
from tallow.run import StageRun

SHOWN_WEIGHTS = 8


@dataclass(frozen=True)
class StageSummary:
    """One finished stage: its result, cost, settings, inputs by content hash, and metrics in order of time."""

    name: str
    result: dict[str, Any]
    ledger: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, str]
    metrics: list[dict[str, Any]]

    def result_text(self) -> str:
        """The result as a short line, such as `documents 3,402 · bytes 7.2 MB`; of weights the largest."""
        parts = list[str]()
        for key, value in self.result.items():
            if key == "weights":
                parts.append(_shares(value))
            elif isinstance(value, int | float | str):
                parts.append(f"{key.replace('_', ' ')} {format_value(key, value)}")
        return " · ".join(parts)


def _shares(weights: Mapping[str, float]) -> str:
    """Domains and their weights, such as `books 62.1 % · code 37.9 %`."""
    ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{name} {weight:.1%}" for name, weight in ordered[:SHOWN_WEIGHTS]]
    return " · ".join([*parts, *([f"{len(ordered) - SHOWN_WEIGHTS:,} more"] if len(ordered) > SHOWN_WEIGHTS else [])])


@dataclass(frozen=True)
class RunSummary:
    """A run: its finished stages in order of time, the evaluation of its models, and sample answers."""

    directory: Path
    stages: list[StageSummary]
    evaluation: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    model: Path | None

    def table(self) -> Table:
        """The stages, one a row, and their totals."""
        table = Table(title=str(self.directory), title_justify="left", header_style="bold")
        for column in ("stage", "result"):
            table.add_column(column, overflow="fold")
        for column in ("time", "memory", "cost"):
            table.add_column(column, justify="right", no_wrap=True)
        for stage in self.stages:
            table.add_row(stage.name, stage.result_text(), *cost_cells(stage.ledger))
        table.add_section()
        table.add_row("total", "", *cost_cells(self.total()))
        return table

    def total(self) -> dict[str, Any]:
        """Cost of all stages together: sums, and the largest peak memory."""
        ledgers = [stage.ledger for stage in self.stages]
        energies = [ledger["energy_j"] for ledger in ledgers if ledger["energy_j"] is not None]
        sums = {key: sum(ledger[key] for ledger in ledgers) for key in ("wall_s", "cpu_s", "tokens", "flops", "cost")}
        peak = max((ledger["peak_rss_bytes"] for ledger in ledgers), default=0)
        return {**sums, "peak_rss_bytes": peak, "energy_j": sum(energies) if energies else None}

    def as_json(self) -> dict[str, Any]:
        """Result and ledger of each stage."""
        return {stage.name: {"result": stage.result, "ledger": stage.ledger} for stage in self.stages}


def cost_cells(ledger: dict[str, Any]) -> tuple[str, str, str]:
    """Time, peak memory and cost of a ledger as text."""
    cost = f"{ledger['cost']:.4f}" if ledger["cost"] else "–"
    return (
        format_value("wall_s", ledger["wall_s"]),
        format_value("peak_rss_bytes", ledger["peak_rss_bytes"]),
        cost,
    )


def summarize(directory: Path) -> RunSummary:
    """Read a run directory.

    Raises:
        DataError: It is no run directory, or a file in it is broken.
    """
    if not directory.is_dir():
        raise DataError(f"run directory {directory} does not exist", "name one, such as runs/quickstart")
    finished = [path.parent for path in directory.glob("*/lineage.json")]
    if not finished:
        raise DataError(f"{directory} holds no finished stage", "tallow run makes one")
    lineages = {path: read_json(path / "lineage.json", "lineage") for path in sorted(finished)}
    lineages = dict(sorted(lineages.items(), key=lambda item: item[1].get("finished", "")))
    products = {path.name: path / lineages[path]["product"] for path in lineages}
    models = [product for product in products.values() if product.name == "model"]
    return RunSummary(
        directory,
        [_summarize_stage(path, lineage) for path, lineage in lineages.items()],
        read_json(products["evaluate"], "evaluation") if "evaluate" in products else {},
        read_json(products["sample"], "samples")["samples"] if "sample" in products else [],
        models[-1] if models else None,
    )


def _summarize_stage(path: Path, lineage: dict[str, Any]) -> StageSummary:
    [settings] = load_recipe(path / "recipe.yaml").values()
    return StageSummary(
        path.name,
        lineage["result"],
        read_json(path / "ledger.json", "ledger"),
        settings,
        lineage["inputs"],
        StageRun(path).metrics(),
    )
