"""What scaling laws say, as a table and as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from tallow.plan.loss_law import Interval
from tallow.plan.scaling import ScalingLaws
from tallow.plan.sizes import format_size

LARGER = (2, 4, 8, 16)


class Prediction(NamedTuple):
    """A run that could be done: what it takes, and what it should come to."""

    parameters: float
    tokens: float
    epochs: float
    seconds: float
    loss: Interval

    def as_json(self) -> dict[str, Any]:
        """Its values and, as `size`, what `--size` takes."""
        values = {"size": format_size(self.parameters), **self._asdict()}
        return values | {"loss": self.loss.loss, "low": self.loss.low, "high": self.loss.high}

    def cells(self) -> list[str]:
        return [
            format_size(self.parameters),
            format_size(self.tokens),
            f"{self.epochs:.2g}",
            _duration(self.seconds),
            f"{self.loss.loss:.3f}",
            f"{self.loss.low:.3f} – {self.loss.high:.3f}",
        ]


def predict_larger(laws: ScalingLaws) -> list[Prediction]:
    """Models twice to sixteen times as large as the largest run, each on the tokens that are best for it."""
    sizes = [factor * laws.largest.parameters for factor in LARGER]
    return [_prediction(laws, size, laws.tokens_for(size)) for size in sizes]


def predict_best(laws: ScalingLaws, hours: Sequence[float]) -> list[Prediction]:
    """The best model for each training time."""
    plans = [laws.best_for(3600 * hour) for hour in hours]
    return [_prediction(laws, plan.parameters, plan.tokens) for plan in plans]


def scaling_table(laws: ScalingLaws, hours: Sequence[float]) -> Table:
    """Predictions for larger models, and the best one for each training time."""
    law = laws.loss.law
    table = Table(
        title=f"{len(laws.runs)} runs: held-out loss = {law.irreducible:.3g} + "
        f"{law.parameters_factor:.3g} / N^{law.parameters_exponent:.3g} + "
        f"{law.tokens_factor:.3g} / D^{law.tokens_exponent:.3g}, ± {laws.loss.noise:.1%}",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in ("size", "tokens", "epochs", "time", "loss", "9 of 10"):
        table.add_column(column, justify="right", no_wrap=True)
    for factor, prediction in zip(LARGER, predict_larger(laws), strict=True):
        table.add_row(f"largest × {factor}", *prediction.cells())
    table.add_section()
    for hour, prediction in zip(hours, predict_best(laws, hours), strict=True):
        table.add_row(f"best in {_duration(3600 * hour)}", *prediction.cells())
    if laws.check is not None:
        check = laws.check
        table.caption = (
            f"without its size, the largest run is predicted at {check.predicted:.3f} "
            f"({check.low:.3f} – {check.high:.3f}); it came to {check.loss:.3f}"
        )
        table.caption_justify = "left"
    return table


def scaling_json(laws: ScalingLaws, hours: Sequence[float]) -> dict[str, Any]:
    """Laws, predictions and the best choices as JSON values."""
    best = zip(hours, predict_best(laws, hours), strict=True)
    return {
        "runs": len(laws.runs),
        "law": laws.loss.law.model_dump(),
        "noise": laws.loss.noise,
        "check": laws.check.model_dump() if laws.check else None,
        "learning_rate": laws.learning_rate.model_dump(),
        "batch_tokens": laws.batch_tokens.model_dump(),
        "larger": [prediction.as_json() for prediction in predict_larger(laws)],
        "best": [{"hours": hour, **prediction.as_json()} for hour, prediction in best],
    }


def _prediction(laws: ScalingLaws, parameters: float, tokens: float) -> Prediction:
    return Prediction(
        parameters=round(parameters),
        tokens=round(tokens),
        epochs=tokens / laws.unique_tokens,
        seconds=laws.speed.seconds(parameters, tokens),
        loss=laws.predict(parameters, tokens),
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:,.3g} h"
