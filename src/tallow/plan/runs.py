"""Finished pretraining runs as the points that scaling laws are fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from tallow.data.manifest import load_manifest
from tallow.errors import DataError, UsageError
from tallow.files import read_json
from tallow.models.formats.hub import read_config, read_encoder_config
from tallow.plan.shapes import count_parameters
from tallow.recipe import Section, load_recipe
from tallow.run import LINEAGE, RECIPE

SAME_TOKENS = 1.02
"""Budgets that differ less are the same: whole batches round them."""


class SmallRun(Section):
    """What a run was and what it came to.

    Args:
        directory: Where it is.
        data: Content hash of its tokens.
        unique_tokens: Different tokens of the training split.
        sequence_length: Tokens of a sequence.
        objective: What it learned.
        parameters: All parameters of the model.
        inner: Those that do not depend on the vocabulary.
        tokens: Tokens that it was trained on.
        loss: Held-out loss at its end, nats a token.
        learning_rate: The largest.
        batch_tokens: Tokens of a batch.
        tokens_per_s: Its median speed.
    """

    directory: str
    data: str
    unique_tokens: PositiveInt
    sequence_length: PositiveInt
    objective: str
    parameters: PositiveInt
    inner: PositiveInt
    tokens: PositiveInt
    loss: PositiveFloat
    learning_rate: PositiveFloat
    batch_tokens: PositiveInt
    tokens_per_s: PositiveFloat


def read_run(directory: Path) -> SmallRun:
    """Read a directory of the stage pretrain.

    Raises:
        DataError: It is none, is not finished, its tokens are gone, or it has no held-out loss.
        UsageError: It began with a model, so its tokens are not all that the model has seen.
    """
    if not (directory / LINEAGE).exists():
        raise DataError(f"{directory} is no finished pretraining run", "name the directory of one, or wait for its end")
    lineage = read_json(directory / LINEAGE, "lineage")
    settings = load_recipe(directory / RECIPE).get("pretrain")
    if settings is None or "parameters" not in lineage["result"]:
        raise DataError(f"{directory} is a run of another stage", "name one of pretrain")
    if settings["init"] is not None:
        raise UsageError(f"{directory} went on from a model", "a law of scale is about runs from random weights")
    if "validation_loss" not in lineage["result"]:
        raise DataError(f"{directory} has no held-out loss", "prepare some held-out text (prepare.validation_fraction)")
    model = directory / lineage["product"]
    shape = read_encoder_config(model) if settings["objective"] == "masked" else read_config(model)
    result, loop = lineage["result"], settings["loop"]
    return SmallRun(
        directory=str(directory),
        data=lineage["inputs"]["tokens"],
        unique_tokens=load_manifest(Path(settings["tokens"])).splits["train"].tokens,
        sequence_length=loop["sequence_length"],
        objective=settings["objective"],
        parameters=result["parameters"],
        inner=count_parameters(shape).inner,
        tokens=result["tokens"],
        loss=result["validation_loss"],
        learning_rate=loop["learning_rate"],
        batch_tokens=loop["batch_size"] * loop["sequence_length"],
        tokens_per_s=result["tokens_per_s"],
    )


def find_runs(paths: Iterable[Path]) -> list[SmallRun]:
    """The runs that directories are, or hold as `pretrain/` or side by side.

    Raises:
        DataError: A directory is and holds none, or one cannot be used.
        UsageError: The runs do not belong together: their losses are of different text.
    """
    runs: list[SmallRun] = []
    for path in paths:
        places = [path] if (path / LINEAGE).exists() else sorted(path.glob(f"*/{LINEAGE}"))
        places = [place.parent if place.name == LINEAGE else place for place in places]
        if (path / "pretrain" / LINEAGE).exists():
            places = [path / "pretrain"]
        if not places:
            raise DataError(f"{path} holds no finished pretraining run", "name directories of the stage pretrain")
        runs += map(read_run, places)
    check_together(runs)
    return runs


def check_together(runs: Sequence[SmallRun]) -> None:
    """Refuse runs whose losses cannot be compared.

    Raises:
        UsageError: They differ in their tokens, the length of their sequences or their objective.
    """
    for run in runs[1:]:
        for what, name in (("data", "tokens"), ("sequence_length", "sequence lengths"), ("objective", "objectives")):
            if getattr(run, what) != getattr(runs[0], what):
                raise UsageError(
                    f"{runs[0].directory} and {run.directory} have different {name}, so their losses do not compare",
                    "take runs that differ in size, tokens, learning rate and batch only",
                )


def group_runs(runs: Iterable[SmallRun]) -> list[list[SmallRun]]:
    """Runs of the same size and budget, the budgets as near as whole batches make them."""
    groups: list[list[SmallRun]] = []
    for run in sorted(runs, key=lambda run: (run.parameters, run.inner, run.tokens)):
        first = groups[-1][0] if groups else None
        if (
            first is not None
            and (first.parameters, first.inner) == (run.parameters, run.inner)
            and run.tokens <= first.tokens * SAME_TOKENS
        ):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups
