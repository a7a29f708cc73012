"""The scaling laws of one's own runs: fitted, kept in `scaling.json`, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt, ValidationError

from tallow.errors import DataError
from tallow.files import read_json, write_json
from tallow.plan.budget import MAX_EPOCHS, Plan, Speed, best_for_time, effective_tokens, fit_speed
from tallow.plan.hyper_laws import BATCH_TOKENS, LEARNING_RATE, Optimum, PowerLaw, find_optimum, fit_power_law
from tallow.plan.loss_law import MIN_LEVELS, MIN_RUNS, Interval, LossFit, fit_loss_law
from tallow.plan.runs import SmallRun, check_together, group_runs
from tallow.recipe import Section

SCALING = "scaling.json"
DEFAULT_RATIO = 20
"""Tokens for each parameter where nothing is known (arXiv 2203.15556, table 3)."""
MIN_RATIO, MAX_RATIO = 5, 200
"""Tokens for each parameter beyond which small runs are not believed."""


class Check(Section):
    """How well the largest run is predicted by the others.

    Args:
        directory: That run.
        loss: What it came to.
        predicted, low, high: What the law that is fitted without its size says.
    """

    directory: str
    loss: float
    predicted: float
    low: float
    high: float


class ScalingLaws(Section):
    """`scaling.json`.

    Args:
        data: Content hash of the tokens.
        unique_tokens: Different tokens that there are to train on.
        sequence_length: Tokens of a sequence.
        objective: What was learned.
        smallest: Parameters of the smallest run.
        loss: Held-out loss by parameters and effective tokens.
        learning_rate: The largest learning rate.
        batch_tokens: Tokens of a batch.
        speed: Of training on this machine.
        check: A test of the law; None where there are too few runs for it.
        runs: What all that was fitted to.
    """

    format: Literal["tallow.scaling.v1"] = "tallow.scaling.v1"
    data: str
    unique_tokens: PositiveInt
    sequence_length: PositiveInt
    objective: str
    loss: LossFit
    learning_rate: PowerLaw
    batch_tokens: PowerLaw
    speed: Speed
    check: Check | None
    runs: tuple[SmallRun, ...]

    @property
    def largest(self) -> SmallRun:
        """The run with the most parameters."""
        return max(self.runs, key=lambda run: run.parameters)

    def predict(self, parameters: float, tokens: float) -> Interval:
        """The held-out loss of a run on this text, also where it sees some of it several times."""
        return self.loss.predict(parameters, effective_tokens(tokens, self.unique_tokens))

    def tokens_for(self, parameters: float) -> int:
        """Tokens that make the best of the operations spent on a model of this size, as far as there is text."""
        return limited_tokens(self.loss.law.best_tokens(parameters), parameters, self.unique_tokens)

    def best_for(self, seconds: float) -> Plan:
        """The model with the least loss after so much time on this machine."""
        smallest = min(run.parameters for run in self.runs)
        return best_for_time(self.loss.law, self.speed, seconds, self.unique_tokens, smallest)


def limited_tokens(tokens: float, parameters: float, unique: float) -> int:
    """A budget within what is believed and what the text gives."""
    return round(min(max(tokens, MIN_RATIO * parameters), MAX_RATIO * parameters, MAX_EPOCHS * unique))


def fit_scaling_laws(runs: Sequence[SmallRun]) -> ScalingLaws:
    """Fit all laws.

    The law of the loss is fitted to the best run of each size and budget, those of learning rate and batch size to
    sizes and budgets at which three values at least were tried, all else being equal.

    Raises:
        UsageError: The runs do not belong together, or are too few.
    """
    check_together(runs)
    best = [min(group, key=lambda run: run.loss) for group in group_runs(runs)]
    loss = _fit_loss(best)
    speeds = [run.parameters for run in runs], [run.tokens_per_s for run in runs]
    return ScalingLaws(
        data=runs[0].data,
        unique_tokens=runs[0].unique_tokens,
        sequence_length=runs[0].sequence_length,
        objective=runs[0].objective,
        loss=loss,
        learning_rate=fit_learning_rate(runs),
        batch_tokens=fit_power_law(_optima(runs, "batch_tokens", "learning_rate"), BATCH_TOKENS),
        speed=fit_speed(*speeds),
        check=_check(best),
        runs=tuple(runs),
    )


def fit_learning_rate(runs: Sequence[SmallRun]) -> PowerLaw:
    """The learning rate's law, fitted where runs of the same size, budget and batch vary it, else the default."""
    return fit_power_law(_optima(runs, "learning_rate", "batch_tokens"), LEARNING_RATE)


def save_scaling_laws(laws: ScalingLaws, path: Path) -> None:
    write_json(path, laws.model_dump(mode="json"))


def load_scaling_laws(path: Path) -> ScalingLaws:
    """Read `scaling.json`.

    Raises:
        DataError: It is missing, broken, or not what `tallow plan scaling` writes.
    """
    values = read_json(path, "scaling laws")
    try:
        return ScalingLaws.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{path} holds no scaling laws", "make it with tallow plan scaling") from error


def _fit_loss(runs: Sequence[SmallRun]) -> LossFit:
    return fit_loss_law(
        np.array([run.parameters for run in runs], dtype=float),
        np.array([effective_tokens(run.tokens, run.unique_tokens) for run in runs]),
        np.array([run.loss for run in runs]),
    )


def _check(best: Sequence[SmallRun]) -> Check | None:
    """Predict the longest run of the largest size from the runs of the other sizes."""
    largest = max(best, key=lambda run: (run.parameters, run.tokens))
    others = [run for run in best if run.parameters != largest.parameters]
    if len(others) < MIN_RUNS or len({run.parameters for run in others}) < MIN_LEVELS:
        return None
    tokens = effective_tokens(largest.tokens, largest.unique_tokens)
    predicted = _fit_loss(others).predict(largest.parameters, tokens)
    return Check(
        directory=largest.directory,
        loss=largest.loss,
        predicted=predicted.loss,
        low=predicted.low,
        high=predicted.high,
    )


def _optima(runs: Sequence[SmallRun], varied: str, fixed: str) -> list[Optimum]:
    """The best value of a setting at each size and budget at which it, and nothing else, was varied."""
    found = []
    for group in group_runs(runs):
        for value in {getattr(run, fixed) for run in group}:
            equal = [run for run in group if getattr(run, fixed) == value]
            losses: dict[float, float] = {}
            for run in equal:
                losses[getattr(run, varied)] = min(run.loss, losses.get(getattr(run, varied), run.loss))
            optimum = find_optimum(list(losses), list(losses.values()))
            if optimum is not None:
                found.append(Optimum(equal[0].inner, equal[0].tokens, optimum))
    return found
