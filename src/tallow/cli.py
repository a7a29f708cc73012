"""The command line: thin. A command reads a recipe and calls one function.

Results go to standard output (one JSON object with `--json`), everything else to standard error. An error is one
sentence and what to do, with the exit code of its class; `--debug` adds the traceback.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import tallow
from tallow.cli_options import (
    AnswerOptions,
    CachePrecisionOption,
    DeviceOption,
    FormOptions,
    ModelOptions,
    PrecisionOption,
    SamplingOptions,
    ServeOptions,
    Threads,
    expanded,
    set_threads,
)
from tallow.console import is_main_process
from tallow.engine.choices import Precision
from tallow.errors import DataError, UsageError
from tallow.exits import escape, print_json, resumable, run_command
from tallow.stages import STAGES, Recipe, resolve, run_recipe, run_stage
from tallow.startup import Moment, uncollected

if TYPE_CHECKING:
    from tallow.tokenizer.tokenizer import Tokenizer

CHAT_SAMPLING = SamplingOptions(max_new_tokens=512, temperature=0.7, top_p=0.95)

Source = Annotated[
    str | None, typer.Argument(metavar="RECIPE.yaml | MODEL", help="A recipe, or a model to start from.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model directory, a .gguf file, a run, or a pulled name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; may be repeated."),
]
Run = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory \\[default: runs/<name>].")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew instead of skipping or resuming what is there.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped (this is also the default).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bench = typer.Typer(no_args_is_help=True, help="Measure speed, beside the machine's limits.")
app.add_typer(bench, name="bench")
plan = typer.Typer(no_args_is_help=True, help="Know before you spend: what a run will come to.")
app.add_typer(plan, name="plan")
data = typer.Typer(no_args_is_help=True, help="Look at prepared data: what is in it, and where it came from.")
app.add_typer(data, name="data")

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


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"tallow {tallow.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
]


@app.callback()
def main_options(debug: Debug = False, version: Version = False) -> None:
    """Raw text to a served, aligned, compressed language model, on hardware that you already have.

    A first model in eight minutes: `tallow run recipes/quickstart.yaml`, then `tallow chat runs/quickstart`.
    """


@app.command()
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


def _add_stage_command(name: str) -> None:
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


for _name in STAGE_HELP:
    if _name == "pretrain":
        app.command(_name, help=STAGE_HELP[_name])(_pretrain)
    else:
        _add_stage_command(_name)


@app.command()
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
    if source is None or _is_recipe(source):
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
    _print_result(score.as_json(), as_json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A known name (smollm2-135m), a hub name (org/model), or a path.")],
    as_json: Json = False,
) -> None:
    """Bring a model into the local store."""
    from tallow.models.store import pull

    _print_result({"name": name, "path": str(pull(name))}, as_json)


@app.command()
def convert(
    model: Model,
    to: Annotated[
        Literal["safetensors", "gguf", "tokenizer", "sentencepiece", "tiktoken", "gpt2", "rwkv"],
        typer.Option(help="The format to write; the last five are of a tokenizer alone."),
    ],
    out: Annotated[Path, typer.Option(help="Where to write it: a directory, or a file.")],
    precision: Annotated[
        Literal["auto", "f16", "bf16", "f32", "q8_0", "q4_0"], typer.Option(help="auto: as stored.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Convert a model between a hub directory (safetensors) and GGUF, or a tokenizer between programs.

    A tokenizer is a model's, or a file: tokenizer.json, sentencepiece's .model, tiktoken's vocabularies, GPT-2's
    merges beside their ids, RWKV's vocabulary. `tokenizer` and `gpt2` write a directory.
    """
    if to not in ("safetensors", "gguf"):
        from tallow.tokenizer.formats import convert_tokenizer

        if precision != "auto":
            raise UsageError("a tokenizer has no precision", "leave --precision out")
        _print_result(convert_tokenizer(_tokenizer(model), to, out), as_json)
        return
    from tallow.models.formats.convert import convert

    _print_result(convert(model, to, out, precision), as_json)


@app.command()
def extend(
    model: Model,
    text: Annotated[
        list[str], typer.Option(help="Text to learn tokens from: a file, directory or glob; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add.")] = 1000,
    held_out: Annotated[
        Path | None, typer.Option(help="Text to measure on \\[default: every 20th piece of --text].")
    ] = None,
    rows: Annotated[
        Literal["mean", "edges", "average", "random"],
        typer.Option(
            help="How a new token begins: as the mean of its pieces, as the last (read) and the first (predicted) of "
            "them, as the mean of all tokens, or at random around that."
        ),
    ] = "mean",
    min_count: Annotated[int, typer.Option(min=1, help="Join two tokens that follow one another so often.")] = 2,
    as_json: Json = False,
) -> None:
    """Give a trained model further tokens for your text, and say what they do to bits per byte."""
    from tallow.evaluate.extend import extend

    result = extend(model, text, tokens, out, held_out=held_out, new_rows=rows, min_count=min_count)
    _print_result(result, as_json)


@app.command()
@expanded
def generate(
    *,
    model: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue, as it stands; - reads standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the chat template.")] = False,
    sampling: SamplingOptions,
    answers: AnswerOptions,
    form: FormOptions,
    loading: ModelOptions,
    as_json: Json = False,
) -> None:
    """Continue a text."""
    if answers.log_probs is not None and not as_json:
        raise UsageError("--log-probs is for --json", "give --json, too")
    params = sampling.params(top_log_probs=answers.log_probs or 0, structure=form.structure())
    beam_params = answers.beam_params(params)
    text = _read_standard_input() if prompt == "-" else prompt
    question = [{"role": "user", "content": text}] if chat else text
    loaded, adapter = loading.load(model)
    if beam_params is not None:
        found = loaded.beam_search(question, beam_params, adapter=adapter)[: answers.n]
    elif as_json or answers.n > 1 or answers.best_of is not None:
        found = loaded.sample(question, params, answers.n, best_of=answers.best_of, adapter=adapter)
    else:
        piece = ""
        try:
            for piece in loaded.stream(question, params, adapter=adapter):
                print(piece, end="", flush=True)
        finally:
            if piece:
                print()  # also before what an error says
        return
    if as_json:
        print_json(answers.as_json(found, params))
    else:
        print("\n\n".join(answers.texts(found)))


@app.command()
@expanded
def chat(
    *,
    model: Model,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    sampling: SamplingOptions = CHAT_SAMPLING,
    loading: ModelOptions,
) -> None:
    """Talk with a model in the terminal."""
    from tallow import terminal

    params = sampling.params()
    loaded, adapter = loading.load(model)
    terminal.chat(loaded, params, system, adapter)


@app.command()
@expanded
def serve(
    *,
    source: Source = None,
    more: Annotated[
        list[str] | None, typer.Option("--model", metavar="[NAME=]MODEL", help="Another model; may be repeated.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="A LoRA adapter of MODEL; may be repeated."),
    ] = None,
    options: ServeOptions,
    overrides: Overrides = None,
) -> None:
    """Serve models over HTTP: OpenAI's and Anthropic's APIs, and a chat page.

    Of a recipe the section `serve` counts. By default nobody but this machine can reach it; any other --host needs
    --keys-file.
    """
    from tallow.serve.server import serve

    is_recipe = source is not None and _is_recipe(source)
    models = [*([source] if source is not None and not is_recipe else []), *(more or [])]
    serve(options.settings(Path(source) if source and is_recipe else None, models, adapters or [], overrides or []))


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|LOG", help="A run directory, or the log of requests that a server has written."),
    ],
    as_json: Json = False,
) -> None:
    """Write the HTML page that sums up a run, or what a server had to do."""
    if source.is_file():
        from tallow.report.load import summarize_log
        from tallow.report.page import write_log_report

        load = summarize_log(source)
        _print_result({"report": str(write_log_report(load)), **load.as_json()}, as_json)
        return
    from tallow.report.page import write_report
    from tallow.report.summary import summarize

    _print_result({"report": str(write_report(summarize(source)))}, as_json)


@app.command()
def watch(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or that of one stage.")],
    once: Annotated[bool, typer.Option("--once", help="Show what there is, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run as it goes: steps, loss, speed, health and what was left out.

    It ends when nobody works there any more, or by Ctrl-C; the run goes on. With --json: what there is, once.
    """
    if as_json:
        from tallow.report.live import Watch

        print_json(Watch(directory).look().as_json())
        return
    from tallow.report.watch import watch

    with suppress(KeyboardInterrupt):
        watch(directory, Console(highlight=False), once=once)


@bench.command("infer")
def bench_infer(
    model: Model,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    cache_precision: CachePrecisionOption = "auto",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Length of each prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate for each.")] = 64,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode speed, and the share of the memory bandwidth that decoding reaches."""
    with uncollected():
        from tallow.bench import infer

        imported = Moment.now()
    set_threads(threads)
    result = infer(model, precision, batch, prompt_tokens, new_tokens, device, cache_precision, imported=imported)
    _print_result(result, as_json)


@bench.command("train")
def bench_train(
    model: Model,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    seq: Annotated[int, typer.Option(help="Tokens a sequence.")] = 512,
    steps: Annotated[int, typer.Option(help="Timed steps, after two to warm up.")] = 5,
    precision: Annotated[
        Literal["bf16", "fp32", "fp16", "float8"], typer.Option(help="Precision of the matrix products.")
    ] = "bf16",
    device: DeviceOption = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="With layers compiled by PyTorch.")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure training speed, and the share of the matrix-product peak that it reaches."""
    from tallow.bench import train

    set_threads(threads)
    _print_result(train(model, batch, seq, steps, precision, device, compiled=compiled), as_json)


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
    kept = [("kept", found.kept_now[0], found.kept_then[0]), ("bytes kept", found.kept_now[1], found.kept_then[1])]
    for name, now, then in [*kept, *found.rows()]:
        change = f"{then - now:+,}" if then != now else ""
        table.add_row(f"[bold]{escape(name)}[/bold]", f"{now:,}", f"{then:,}", change)
    for column in table.columns[1:]:
        column.justify = "right"
    Console(highlight=False).print(table, soft_wrap=True)


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
        console.rule(escape(f"{document['fate']}: {document['source']} at {document['offset']:,}"), align="left")
        known = ", ".join(
            f"{name} {_format(value)}" for name, value in document["columns"].items() if value is not None
        )
        console.print(f"[dim]{escape(known)}[/dim]")
        console.print(escape(document["text"]))


@data.command("classifier")
def data_classifier(
    good: Annotated[list[str], typer.Option(help="Examples of what is to have a high score; may be repeated.")],
    bad: Annotated[list[str], typer.Option(help="Examples of what is to have a low one; may be repeated.")],
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
    _print_result(found, as_json)
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

    _print_result(ngrams(texts, out, text_field, order, memory_mb), as_json)


@bench.command("tokenizer")
def bench_tokenizer(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="A model, or a tokenizer's directory or file.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Texts: files of any kind that prepare reads.")
    ],
    by: Annotated[Literal["file", "language"], typer.Option(help="What groups the documents.")] = "file",
    max_mb: Annotated[float, typer.Option(help="Megabytes of each file, about.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure a tokenizer on texts: bytes per token, tokens per word, vocabulary used, speed, and worst cases.

    Megabytes a second are those of one CPU second.
    """
    from tallow.report.tokenizer import report_tokenizer, tokenizer_json, tokenizer_table

    found = report_tokenizer(_tokenizer(tokenizer), files, by, int(max_mb * 1e6))
    if as_json:
        print_json(tokenizer_json(*found))
        return
    Console(highlight=False).print(tokenizer_table(*found))


@data.command("trace")
def data_trace(
    shard: Annotated[Path, typer.Argument(metavar="SHARD", help="tokens/train/shard-00000, say, of a run.")],
    token: Annotated[int, typer.Argument(metavar="TOKEN", help="Number of a token in it, from 0.")],
    tokenizer: Annotated[Path | None, typer.Option(help="What tells its text \\[default: the run's].")] = None,
    as_json: Json = False,
) -> None:
    """Say where a token came from: its document, the file, and where in it."""
    from tallow.data.trace import trace

    _print_result(trace(shard, token, tokenizer).as_json(), as_json)


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
    _print_result({"instructions": str(out / "instructions.jsonl"), "summary": summary}, as_json)


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


@plan.command("scaling")
def plan_scaling(
    sources: Annotated[
        list[str], typer.Argument(metavar="RECIPE.yaml | RUN...", help="A recipe, or runs that have been done.")
    ],
    minutes: Annotated[float, typer.Option(help="Time for the small runs of a recipe.")] = 10.0,
    hours: Annotated[
        list[float] | None,
        typer.Option(help="A training time to find the best model for; may be repeated \\[default: 1, 8 and 24]."),
    ] = None,
    overrides: Overrides = None,
    run: Run = None,
    as_json: Json = False,
) -> None:
    """Fit scaling laws to small runs on your own text, and predict larger ones.

    Of a recipe whose tokens are encoded, a ladder of small models is trained for --minutes: sizes, token budgets and
    learning rates. It goes on where it was interrupted, and more minutes add to it. What is fitted lies in
    runs/NAME/scaling/ (scaling.json, scaling.svg), and `tallow pretrain RECIPE.yaml --size 30m` goes by it.

    Of runs that have been done (at least six, on the same tokens) the laws are fitted and printed, and written where
    --run says.

    Predictions are of held-out loss, with an interval that holds 9 of 10 such runs if the law holds as far as that.
    """
    from tallow.plans import scale_recipe, scale_runs, write_laws
    from tallow.report.scaling import scaling_json, scaling_table

    times = hours or [1.0, 8.0, 24.0]
    if min(times) <= 0:
        raise UsageError(f"{min(times):g} hours are no time", "set --hours to more than 0")
    if any(map(_is_recipe, sources)):
        if len(sources) > 1:
            raise UsageError("a recipe and other runs cannot be planned together", "name one recipe, or runs")
        recipe = Recipe.load(Path(sources[0]), overrides or [])
        with resumable():
            laws = scale_recipe(recipe, recipe.directory(run), minutes)
    else:
        laws = scale_runs([Path(source) for source in sources])
        if run is not None:
            write_laws(laws, run)
    if as_json:
        print_json(scaling_json(laws, times))
        return
    Console(highlight=False).print(scaling_table(laws, times))


def main() -> None:
    """Entry point: run a command; turn every failure into one sentence and its exit code."""
    sys.exit(run_command(lambda arguments: app(args=arguments, standalone_mode=False, prog_name="tallow")))


def _stage_recipe(name: str, source: str | None, overrides: list[str]) -> Recipe:
    """The recipe of a stage command; a model given instead of a recipe becomes the stage's input."""
    if source is None or _is_recipe(source):
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
        _print_result({**result, "product": str(product)}, as_json)


def _tokenizer(source: str) -> Tokenizer:
    """That of a model, or in a file or directory of its own."""
    from tallow.tokenizer.formats import has_tokenizer
    from tallow.tokenizer.tokenizer import Tokenizer

    if has_tokenizer(Path(source)):
        return Tokenizer.load(source)
    from tallow.models.formats import load_tokenizer  # imports torch, for which a file above need not wait
    from tallow.models.store import resolve as resolve_model

    return load_tokenizer(resolve_model(source))


def _is_recipe(source: str) -> bool:
    return source.endswith((".yaml", ".yml"))


def _fresh(fresh: bool, resume: bool) -> bool:
    if fresh and resume:
        raise UsageError("--fresh and --resume exclude each other", "give one of them")
    return fresh


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("standard input is not UTF-8 text", "convert it (iconv does)") from error


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in result.items():
        table.add_row(f"[bold]{escape(key)}[/bold]", escape(_format(value)))
    Console(highlight=False).print(table, soft_wrap=True)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
