"""The commands `tallow data …`: looking at what is prepared, training what scores it, and making instructions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from tallow.cli_options import Json, Overrides
from tallow.cli_output import format_value, print_result
from tallow.console import say
from tallow.errors import UsageError
from tallow.exits import escape, print_json, resumable

data = typer.Typer(no_args_is_help=True, help="Look at prepared data: what is in it, and where it came from.")


@data.command("what-if")
def data_what_if(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="runs/NAME, in which the stage prepare is done.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Say what other settings would drop, from what is already known of the documents.

    For instance: tallow data what-if runs/web --set quality.gopher.min_words=20 --set near_duplicates.threshold=0.7
    """
    from tallow.data.look import what_if

    found = what_if(run, overrides or [])
    if as_json:
        print_json(found.as_json())
        return
    table = Table("", "now", "then", "", box=None, pad_edge=False)
    documents, sizes = (found.now.documents, found.then.documents), (found.now.bytes, found.then.bytes)
    reasons = [row for row in found.rows() if row[1] or row[2]]
    for name, now, then in [("kept", *documents), ("bytes kept", *sizes), *reasons]:
        change = f"{then - now:+,}" if then != now else ""
        table.add_row(f"[bold]{escape(name)}[/bold]", f"{now:,}", f"{then:,}", change)
    for column in table.columns[1:]:
        column.justify = "right"
    Console(highlight=False).print(table, soft_wrap=True)
    if found.changed:
        names = f"{found.changed[0]} and {len(found.changed) - 1:,} more" if found.changed[1:] else found.changed[0]
        say(f"{names} changed since, or gone: all this is about what was read")


@data.command("show")
def data_show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="runs/NAME, in which the stage prepare is done.")],
    fate: Annotated[
        str | None,
        typer.Option(help="kept, or what has dropped them: duplicate, gopher.min_words ... \\[default: all]."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Documents on a page.")] = 5,
    page: Annotated[int, typer.Option(min=1, help="Which page.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another one shuffles them otherwise.")] = 0,
    chars: Annotated[int, typer.Option(min=1, help="Characters of each text.")] = 600,
    metrics: Annotated[bool, typer.Option("--metrics", help="Show all that is known of each, too.")] = False,
    as_json: Json = False,
) -> None:
    """Page through documents that were kept or dropped, with why."""
    from tallow.data.look import show

    found = show(run, fate, count, (page - 1) * count, seed)
    documents = [{**document, "text": document["text"][:chars]} for document in found]
    if as_json:
        print_json({"documents": documents})
        return
    console = Console(highlight=False)
    for document in documents:
        why = _fate(document["fate"], document["broken"])
        console.rule(escape(f"{why} · {document['source']} at {document['offset']:,}"), align="left")
        if metrics:
            known = ", ".join(
                f"{name} {format_value(value)}" for name, value in document["columns"].items() if value is not None
            )
            console.print(f"[dim]{escape(known)}[/dim]")
        console.print(escape(document["text"]))


def _fate(fate: str, broken: dict[str, Any] | None) -> str:
    """What has come of a document, with the bound that it has broken: `gopher.min_words: 12 < 50`."""
    if broken is None:
        return fate
    sign, bound = ("<", broken["min"]) if broken["min"] is not None else (">", broken["max"])
    return f"{fate}: {format_value(broken['value'])} {sign} {format_value(bound)}"


@data.command("classifier")
def data_classifier(
    good: Annotated[
        list[str],
        typer.Option(
            help="Examples of what is to have a high score: a file, directory or quoted glob; may be repeated."
        ),
    ],
    bad: Annotated[list[str], typer.Option(help="Examples of what is to have a low one, likewise.")],
    out: Annotated[Path, typer.Option(help="Directory that it is written to.")],
    text_field: Annotated[str, typer.Option(help="Field or column with the text, in JSON, CSV or parquet.")] = "text",
    bits: Annotated[int, typer.Option(min=8, max=24, help="It has 2^bits weights.")] = 18,
    as_json: Json = False,
) -> None:
    """Train a classifier of texts on examples, for prepare.classifiers; says how good it is on held-out ones."""
    from tallow.data.scorers import classifier

    found = classifier(good, bad, out, text_field, bits)
    if as_json:
        print_json(found)
        return
    points = found.pop("points")
    print_result(found, as_json)
    table = Table(*points[0], box=None, pad_edge=False)
    for point in points:
        table.add_row(*("–" if value is None else f"{value:.3f}" for value in point.values()))
    Console(highlight=False).print(table, soft_wrap=True)


@data.command("ngrams")
def data_ngrams(
    texts: Annotated[list[str], typer.Argument(metavar="FILE...", help="Texts that others are to be like.")],
    out: Annotated[Path, typer.Option(help="Directory that it is written to.")],
    text_field: Annotated[str, typer.Option(help="Field or column with the text, in JSON, CSV or parquet.")] = "text",
    order: Annotated[int, typer.Option(min=1, max=8, help="Words of the longest n-gram.")] = 5,
    memory_mb: Annotated[int, typer.Option(min=1, help="Memory of its training.")] = 1024,
    as_json: Json = False,
) -> None:
    """Train an n-gram model on texts, for prepare.perplexity."""
    from tallow.data.scorers import ngrams

    print_result(ngrams(texts, out, text_field, order, memory_mb), as_json)


@data.command("trace")
def data_trace(
    shard: Annotated[Path, typer.Argument(metavar="SHARD", help="tokens/train/shard-00000, say, of a run.")],
    token: Annotated[int, typer.Argument(metavar="TOKEN", help="Number of a token in it, from 0.")],
    tokenizer: Annotated[Path | None, typer.Option(help="What tells its text \\[default: the run's].")] = None,
    as_json: Json = False,
) -> None:
    """Say where a token came from: its document, the file, and where in it."""
    from tallow.data.trace import trace

    print_result(trace(shard, token, tokenizer).as_json(), as_json)


@data.command("synthesize")
def data_synthesize(
    seeds: Annotated[
        list[str],
        typer.Argument(metavar="SEEDS...", help="Seed tasks that people wrote: JSON lines, of Self-Instruct."),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the instructions; what is there already is gone on with.")],
    model: Annotated[str, typer.Option(help="Who writes: a local model, or with --url the name of a served one.")],
    url: Annotated[
        str | None, typer.Option(help="Address of OpenAI's API, such as http://localhost:8000/v1; key: OPENAI_API_KEY.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Instructions to make.")] = 100,
    api: Annotated[
        Literal["chat", "completions"], typer.Option(help="Ask in a conversation, or let a prompt be continued.")
    ] = "chat",
    seed: Annotated[int, typer.Option(help="Names the prompts, and goes with each ask.")] = 0,
    parallel: Annotated[int, typer.Option(min=1, help="Asks at once (with --url).")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Repetitions of an ask that failed in passing.")] = 5,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another setting; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model write instructions, from some that people wrote (Self-Instruct)."""
    from tallow.data.synthetic.self_instruct import SynthesizeConfig, synthesize
    from tallow.data.synthetic.writers import Endpoint, Local
    from tallow.recipe import apply_overrides, parse_section

    values = apply_overrides({"count": count, "seed": seed}, settings or [])
    config = parse_section(SynthesizeConfig, values, "synthesize")
    if url is not None:
        writer = Endpoint(url, model, api, os.environ.get("OPENAI_API_KEY"), timeout, retries, parallel)
    else:
        from tallow.engine.language_model import load

        writer = Local(load(model), api)
    name = f"{model} ({api})"
    with resumable():
        summary = synthesize(seeds, writer, name, out, config, parallel)
    print_result({"instructions": str(out / "instructions.jsonl"), "summary": summary}, as_json)


@data.command("select")
def data_select(
    files: Annotated[list[str], typer.Option("--data", help="Instructions to choose from; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="By influence: a small model. By classifier: its directory."),
    ] = None,
    by: Annotated[
        Literal["influence", "prompt_words", "response_words", "distinct", "copied", "classifier"],
        typer.Option(help="What it is chosen by: gradients, or what the texts tell."),
    ] = "influence",
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="By influence: examples of a wanted task; may be repeated.")
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of the examples to take \\[default: 0.05].")] = None,
    count: Annotated[int | None, typer.Option(help="Or so many of them.")] = None,
    lowest: Annotated[
        list[str] | None, typer.Option("--min", metavar="SCORE=VALUE", help="Least of a text's score; may be repeated.")
    ] = None,
    highest: Annotated[
        list[str] | None, typer.Option("--max", metavar="SCORE=VALUE", help="Most of it; may be repeated.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=1, help="By influence longer examples are left out.")] = 512,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="By influence another setting; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose instructions: those that teach what a few examples show (LESS), or by length, repetition, a classifier.

    Influence goes by gradients of a small MODEL, classifier by the probability that one gives. The longest prompts or
    responses (prompt_words, response_words) and those that repeat themselves (distinct) or their prompt (copied) least
    need none.
    """
    from tallow.data.selection.chosen import wanted
    from tallow.recipe import apply_overrides, parse_section
    from tallow.report.selection import selection_tables

    much = wanted(fraction, count, 0.05)
    if by != "influence":
        from tallow.data.selection.by_text import read_bounds, select_by_text

        if targets or settings:
            raise UsageError(f"--target and --set say nothing of {by}", "leave them out, or choose --by influence")
        bounds = {"lowest": read_bounds(lowest or []), "highest": read_bounds(highest or [])}
        result = select_by_text(files, out, by, much, classifier=Path(model) if model else None, **bounds)
    else:
        from tallow.tune.influence import InfluenceConfig
        from tallow.tune.select import select

        if model is None or not targets:
            raise UsageError(
                "influence is that on a model, by some examples", "give MODEL and --target, or another --by"
            )
        if lowest or highest:
            raise UsageError("--min and --max are of what texts tell", "choose by that first, with --fraction 1")
        config = parse_section(InfluenceConfig, apply_overrides({}, settings or []), "select")
        result = select(model, files, targets, out, config, much, sequence_length=sequence_length)
    if as_json:
        print_json(result)
        return
    Console(highlight=False).print(selection_tables(result), soft_wrap=True)
