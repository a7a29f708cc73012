"""The command line: thin. A command reads a recipe and calls one function.

Results go to standard output (one JSON object with `--json`), everything else to standard error. An error is one
sentence and what to do, with the exit code of its class; `--debug` adds the traceback.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

import tallow
from tallow.cli_bench import bench
from tallow.cli_data import data
from tallow.cli_options import (
    AnswerOptions,
    FormOptions,
    Json,
    Model,
    ModelOptions,
    Overrides,
    Run,
    SamplingOptions,
    ServeOptions,
    Source,
    expanded,
    is_recipe,
    load_tokenizer,
)
from tallow.cli_output import print_beside, print_result
from tallow.cli_stages import add_commands
from tallow.errors import DataError, UsageError
from tallow.exits import print_json, resumable, run_command
from tallow.stages import Recipe

CHAT_SAMPLING = SamplingOptions(max_new_tokens=512, temperature=0.7, top_p=0.95)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
plan = typer.Typer(no_args_is_help=True, help="Know before you spend: what a run will come to.")
app.add_typer(plan, name="plan")
app.add_typer(data, name="data")


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


add_commands(app)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A known name (smollm2-135m), a hub name (org/model), or a path.")],
    as_json: Json = False,
) -> None:
    """Bring a model into the local store."""
    from tallow.models.store import pull

    print_result({"name": name, "path": str(pull(name))}, as_json)


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
        print_result(convert_tokenizer(load_tokenizer(model), to, out), as_json)
        return
    from tallow.models.formats.convert import convert

    print_result(convert(model, to, out, precision), as_json)


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
    print_beside(result, ("before", "after"), as_json)


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

    recipe = Path(source) if source is not None and is_recipe(source) else None
    models = [*([source] if source is not None and recipe is None else []), *(more or [])]
    serve(options.settings(recipe, models, adapters or [], overrides or []))


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
        print_result({"report": str(write_log_report(load)), **load.as_json()}, as_json)
        return
    from tallow.report.page import write_report
    from tallow.report.summary import summarize

    print_result({"report": str(write_report(summarize(source)))}, as_json)


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
    if any(map(is_recipe, sources)):
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


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("standard input is not UTF-8 text", "convert it (iconv does)") from error
