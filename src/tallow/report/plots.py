"""Plots as SVG text, for pages that need nothing but themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import dates as mdates
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tallow.plan.runs import group_runs
from tallow.plan.scaling import ScalingLaws
from tallow.plan.sizes import format_size
from tallow.report.load import Load

TRAINING, VALIDATION, RATE = "#4c78a8", "#e45756", "#9a9a9a"


def training_curves(metrics: Sequence[dict[str, Any]]) -> str | None:
    """Loss, held-out loss and learning rate over the steps of a run; None without at least two records."""
    losses = _series(metrics, "loss")
    if len(losses[0]) < 2:
        return None
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*losses, color=TRAINING, linewidth=1, label="training loss (nats a token)")
    validation = _series(metrics, "validation_loss")
    if validation[0]:
        axes.plot(*validation, color=VALIDATION, marker="o", markersize=3, label="held-out loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    rates = _series(metrics, "learning_rate")
    if rates[0]:
        right = axes.twinx()
        right.plot(*rates, color=RATE, linewidth=0.8, linestyle=":", label="learning rate")
        right.set_yticks([])
        right.spines[:].set_visible(False)
    _tidy(axes)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return _svg(figure)


def bars(values: dict[str, float], label: str) -> str:
    """One horizontal bar a name, its value at the end."""
    figure = Figure(figsize=(7.2, 0.6 + 0.35 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(list(values), list(values.values()), color=TRAINING, height=0.6)
    axes.bar_label(drawn, fmt="%.3f", padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    _tidy(axes)
    return _svg(figure)


def load_curves(load: Load) -> str:
    """Tokens per second, the time to the first token, and how many requests wait and are answered, over time."""
    figure = Figure(figsize=(7.2, 6.6), layout="constrained")
    speed, patience, queue = figure.subplots(3, sharex=True)
    times = [datetime.fromtimestamp(seconds, UTC) for seconds in load.edges_s]
    speed.stairs(load.tokens_per_s, mdates.date2num(times), color=TRAINING, label="generated")
    speed.stairs(load.prompt_tokens_per_s, mdates.date2num(times), color=RATE, label="of prompts, computed")
    speed.set_ylabel("tokens per second")
    middles = [start + (end - start) / 2 for start, end in pairwise(times)]
    patience.plot(
        middles, load.first_token_s[95], color=VALIDATION, marker="o", markersize=3, linewidth=1, label="95 %"
    )
    patience.plot(middles, load.first_token_s[50], color=TRAINING, marker="o", markersize=3, linewidth=1, label="half")
    patience.set_ylabel("first token after (s)")
    queue.stairs(load.waiting, mdates.date2num(times), color=VALIDATION, label="waiting for the first token")
    queue.stairs(load.running, mdates.date2num(times), color=TRAINING, label="being answered")
    queue.set_ylabel("requests, at most")
    queue.xaxis.set_major_formatter(mdates.ConciseDateFormatter(queue.xaxis.get_major_locator()))
    queue.set_xlabel("time (UTC)")
    for axes in (speed, patience, queue):
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False, fontsize=8)
        _tidy(axes)
    return _svg(figure)


def scaling_curves(laws: ScalingLaws) -> str:
    """Loss over tokens: the runs of each size with their law and its interval, and sizes beyond them."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    groups = group_runs(laws.runs)
    best = [min(group, key=lambda run: run.loss) for group in groups]
    sizes = sorted({run.parameters for run in best})
    fewest = min(run.tokens for run in best)
    beyond = [factor * sizes[-1] for factor in (2, 4, 8)]
    last = max(laws.tokens_for(beyond[-1]), *(run.tokens for run in best))
    tokens = np.geomspace(fewest, last, 60).tolist()
    colors = mpl.colormaps["viridis"](np.linspace(0.9, 0, len(sizes) + len(beyond)))
    for size, color in zip([*sizes, *beyond], colors, strict=True):
        predicted = [laws.predict(size, count) for count in tokens]
        own = [run for run in best if run.parameters == size]
        axes.plot(
            tokens,
            [loss.loss for loss in predicted],
            color=color,
            linewidth=1,
            linestyle="-" if own else "--",
            label=format_size(size) + ("" if own else ", predicted"),
        )
        axes.plot([run.tokens for run in own], [run.loss for run in own], "o", color=color, markersize=4)
        if not own:  # bands of all sizes would hide each other
            low, high = [loss.low for loss in predicted], [loss.high for loss in predicted]
            axes.fill_between(tokens, low, high, color=color, alpha=0.1, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss (nats a token)")
    _tidy(axes)
    axes.tick_params(which="minor", labelsize=7)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="parameters", title_fontsize=8)
    return _svg(figure)


def _series(metrics: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(record["step"], record[name]) for record in metrics if "step" in record and record.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _svg(figure: Figure) -> str:
    """The drawing alone, without XML prologue, with the same bytes for the same data."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tallow", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
