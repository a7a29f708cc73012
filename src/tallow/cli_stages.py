"""The commands that do what a recipe says: `run`, and one for each stage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tallow.cli_options import Fresh, Json, Overrides, Resume, Run, Source, is_recipe
from tallow.cli_output import print_result
from tallow.console import is_main_process
from tallow.engine.choices import Precision
from tallow.errors import UsageError
from tallow.exits import escape, print_json, resumable
from tallow.stages import STAGES, Recipe, resolve, run_recipe, run_stage

STAGE_HELP = {
    "prepare": "Read raw files into clean, deduplicated documents.",
    "tokenizer": "Train a tokenizer on the prepared documents.",
    "encode": "Turn documents into memory-mapped token shards.",
    "mixture": "Learn by small models how much of which data to train on.",
    "pretrain": "Train a model from scratch, or go on from one.",
    "tune": "Fine-tune a model on instructions, fully or with LoRA.",
    "compress": "Make a model smaller: 4- and 8-bit weights.",
    "sample": "Answer the recipe's prompts.",
}


def add_commands(app: typer.Typer) -> None:
    """Add them, in the order in which help is to name them."""
    app.command()(run)
    for name in STAGE_HELP:
        if name == "pretrain":
            app.command(name, help=STAGE_HELP[name])(_pretrain)
        else:
            _add_stage_command(app, name)
    app.command()(evaluate)


def _add_stage_command(app: typer.Typer, name: str) -> None:
    def command(
        source: Source = None,
        overrides: Overrides = None,
        run: Run = None,
        fresh: Fresh = False,
        resume: Resume = False,
        as_json: Json = False,
    ) -> None:
        recipe = _stage_recipe(name, source, overrides or [])
        _do_stage(name, recipe, recipe.directory(run), _fresh(fresh, resume), as_json)

    app.command(name, help=STAGE_HELP[name])(command)


def run(
    source: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="A recipe file.")],
    overrides: Overrides = None,
    run: Run = None,
    fresh: Fresh = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Do all stages that a recipe names, in order, skipping what is done and unchanged."""
    from tallow.report.page import write_report
    from tallow.report.summary import summarize

    recipe = Recipe.load(Path(source), overrides or [])
    directory = recipe.directory(run)
    with resumable():
        run_recipe(recipe, directory, fresh=_fresh(fresh, resume))
    if not is_main_process():
        return
    summary = summarize(directory)
    page = write_report(summary)
    if as_json:
        print_json({"run": str(directory), "report": str(page), "stages": summary.as_json()})
        return
    console = Console(highlight=False)
    console.print(summary.table())
    for sample in summary.samples:
        console.print(f"\n[bold]› {escape(sample['prompt'])}[/bold]\n{escape(sample['answer'])}")
    console.print(f"\nreport: {page}", soft_wrap=True)
    from tallow.models.formats.hub import is_encoder  # imports torch: nothing that is refused above should wait for it

    if summary.model is not None and not is_encoder(summary.model):
        console.print(f"chat:   {sys.argv[0]} chat {directory}", soft_wrap=True)


def _pretrain(
    source: Source = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="30m",
            help="Parameters of the model. Shape, batch, learning rate and tokens follow, unless the recipe sets them: "
            "by what `tallow plan scaling` has fitted, else by published laws.",
        ),
    ] = None,
    overrides: Overrides = None,
    run: Run = None,
    fresh: Fresh = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    dialed = [f"pretrain.size={size}"] if size is not None else []
    recipe = _stage_recipe("pretrain", source, [*(overrides or []), *dialed])
    _do_stage("pretrain", recipe, recipe.directory(run), _fresh(fresh, resume), as_json)


def evaluate(
    source: Source = None,
    task: Annotated[Literal["perplexity"], typer.Option(help="What to measure.")] = "perplexity",
    file: Annotated[
        Path | None, typer.Option(help="Held-out text: .txt, .jsonl, .parquet, or prepared documents.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of each window \\[default: the model's context, at most 1,024].")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Score at most so many tokens.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="In which it is computed \\[default: as stored].")] = None,
    overrides: Overrides = None,
    run: Run = None,
    fresh: Fresh = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Measure a model (or the models of a run): perplexity and bits per byte on a text."""
    if source is None or is_recipe(source):
        recipe = Recipe.load(Path(source) if source else None, overrides or [])
        given = {"file": file and str(file), "window": window, "max_tokens": max_tokens, "precision": precision}
        section = recipe.stages.get("evaluate", {}) | {key: value for key, value in given.items() if value is not None}
        recipe = Recipe(recipe.settings, recipe.stages | {"evaluate": section})
        _do_stage("evaluate", recipe, recipe.directory(run), _fresh(fresh, resume), as_json)
        return
    if file is None:
        raise UsageError(f"evaluate --task {task} needs a text", "name one with --file")
    from tallow.engine.language_model import load
    from tallow.evaluate.perplexity import perplexity, read_text

    score = perplexity(load(source, precision or "auto"), read_text(file), window, max_tokens)
    print_result(score.as_json(), as_json)


def _stage_recipe(name: str, source: str | None, overrides: list[str]) -> Recipe:
    """The recipe of a stage command; a model given instead of a recipe becomes the stage's input."""
    if source is None or is_recipe(source):
        return Recipe.load(Path(source) if source else None, overrides)
    from tallow.models.store import resolve as resolve_model

    setting = {"pretrain": "init", "tune": "model", "compress": "model", "sample": "model"}.get(name)
    if setting is None:
        raise UsageError(f"{name} takes a recipe, not {source}", "name a .yaml file")
    path = resolve_model(source)
    return Recipe.load(None, [f"name={path.stem}", f"{name}.{setting}={path}", *overrides])


def _do_stage(name: str, recipe: Recipe, directory: Path, fresh: bool, as_json: bool) -> None:
    from tallow.run import StageRun

    for section in recipe.stages:  # a mistake in a later section is told now, not hours later
        resolve(recipe, section, directory)
    stage_run = StageRun(directory / name, recipe.settings.price_per_hour, resume=not fresh)
    with resumable():
        result = run_stage(name, resolve(recipe, name, directory), stage_run)
    if is_main_process():
        product = stage_run.directory / STAGES[name].product
        print_result({**result, "product": str(product)}, as_json)


def _fresh(fresh: bool, resume: bool) -> bool:
    if fresh and resume:
        raise UsageError("--fresh and --resume exclude each other", "give one of them")
    return fresh
