"""What `tallow plan` does before a run: the stages do the small runs, `plan/` fits them, `report/` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tallow.console import say
from tallow.errors import UsageError
from tallow.files import write_text
from tallow.plan.dial import SizedPretrainConfig
from tallow.plan.runs import find_runs
from tallow.plan.scaling import SCALING, ScalingLaws, fit_scaling_laws, save_scaling_laws
from tallow.plan.sweep import Sweep
from tallow.report.plots import scaling_curves
from tallow.run import StageRun
from tallow.stages import SCALING_DIRECTORY, Recipe, input_paths, require_inputs, resolve, run_stage

PLOT = "scaling.svg"


def scale_recipe(recipe: Recipe, directory: Path, minutes: float) -> ScalingLaws:
    """Do small runs of a recipe's pretrain stage on its encoded tokens, and fit laws to them.

    They lie in `scaling/` below the run's directory, with `scaling.json` and a plot. Interrupted, the same call goes
    on; with another time, earlier runs count too.

    Raises:
        UsageError: The recipe has no stage pretrain, or time or text are too little.
        DataError: Its tokens are missing.
        Interrupted: What is done is kept.
    """
    if "pretrain" not in recipe.stages:
        raise UsageError("the recipe has no section pretrain", "add one, empty if need be: pretrain: {}")
    if minutes <= 0:
        raise UsageError(f"{minutes} minutes are no time", "set --minutes to more than 0")
    config = resolve(recipe, "pretrain", directory)
    assert isinstance(config, SizedPretrainConfig)
    require_inputs("pretrain", input_paths(config))
    place = directory / SCALING_DIRECTORY

    def do(config: SizedPretrainConfig, where: Path) -> Mapping[str, Any]:
        return run_stage("pretrain", config, StageRun(where, recipe.settings.price_per_hour))

    laws = fit_scaling_laws(Sweep(config, place, do).run(60 * minutes))
    write_laws(laws, place)
    return laws


def scale_runs(paths: Sequence[Path]) -> ScalingLaws:
    """Fit laws to runs that have been done.

    Args:
        paths: Directories of the stage pretrain, of whole runs, or of several such side by side.

    Raises:
        DataError: A directory holds no such run.
        UsageError: The runs do not belong together, or are too few.
    """
    return fit_scaling_laws(find_runs(paths))


def write_laws(laws: ScalingLaws, directory: Path) -> None:
    """Write `scaling.json` and a plot of it."""
    save_scaling_laws(laws, directory / SCALING)
    write_text(directory / PLOT, scaling_curves(laws))
    say(f"laws: {directory / SCALING}; plot: {directory / PLOT}")
