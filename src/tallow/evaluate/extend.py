"""A model with a larger vocabulary: further tokens for a user's text, and what they do to bits per byte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tallow.console import say
from tallow.data.read import read_documents
from tallow.data.reading.settings import ReadSettings
from tallow.data.records import Rejected
from tallow.data.sources import find_sources
from tallow.engine.language_model import load
from tallow.errors import DataError, UsageError
from tallow.evaluate.perplexity import Perplexity, perplexity, read_text
from tallow.files import write_json
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.models.formats.convert import check_place
from tallow.models.growth.vocabulary import NewRows, extend_vocabulary
from tallow.models.store import resolve
from tallow.tokenizer.extend import extend_tokenizer
from tallow.train.trainable import refuse_quantized

PIECE_CHARACTERS = 4096
HELD_OUT_EVERY = 20
MEASURED_CHARACTERS = 100_000


def extend(
    model: str | Path,
    texts: Sequence[str | Path],
    num_tokens: int,
    out: Path,
    *,
    held_out: Path | None = None,
    new_rows: NewRows = "mean",
    min_count: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a model with further tokens that are learned from texts.

    Args:
        model: Anything that `store.resolve` understands; not quantized.
        texts: What to learn from: files, directories and globs as `find_sources` takes them.
        num_tokens: How many tokens to add.
        out: The directory to write.
        held_out: Text to measure on; None: every 20th piece of the texts, which is not learned from.
        new_rows: How rows of the new tokens begin.
        min_count: Two tokens are joined only if they follow one another at least that often.
        seed: Names what is drawn for rows that begin at random.

    Returns:
        `path`, `new_tokens`, `vocab_size`, and `before` and `after`, each with `bits_per_byte`, `bytes_per_token` and
        `tokens` on the held-out text.

    Raises:
        DataError: Model or text cannot be read, or the text yields no new token.
        UsageError: The model or its tokenizer is of a kind that cannot be extended, or `out` is no place for it.
        CapacityError: The disk is full.
    """
    source, out = resolve(model), Path(os.path.abspath(out))
    check_place("safetensors", out)
    if out == source.absolute():
        raise UsageError(f"{out} is the model that is to be extended", "name another directory")
    decoder, tokenizer = load_model(source), load_tokenizer(source)
    refuse_quantized(decoder, source)
    measured = read_text(held_out) if held_out is not None else []
    pieces = _pieces(texts)
    if held_out is None:
        pieces = _holding_out(pieces, measured)
    extension = extend_tokenizer(tokenizer, pieces, num_tokens, min_count)
    if not measured:
        raise DataError("the text is too short to hold some of it out", "name a text with held_out")
    measured = _beginning(measured)
    larger = extend_vocabulary(decoder, extension.pieces, new_rows, seed)
    before = _measure(source, measured, "before")
    save_model(larger, extension.tokenizer, out)
    result = {
        "new_tokens": len(extension.pieces),
        "vocab_size": extension.tokenizer.vocab_size,
        "before": before,
        "after": _measure(out, measured, "after"),
    }
    write_json(out / "extension.json", {**result, "new_rows": new_rows, "first_new_id": min(extension.pieces)})
    return {"path": str(out), **result}


def _pieces(names: Sequence[str | Path]) -> Iterator[str]:
    """The texts in pieces of some thousand characters, cut at ends of lines where there are some."""
    rejected = Rejected()
    for document in read_documents(find_sources(names), ReadSettings(), rejected):
        text, start = document.text, 0
        while start < len(text):
            end = start + PIECE_CHARACTERS
            line = text.rfind("\n", start, end) + 1
            end = line if line > start and end < len(text) else end
            yield text[start:end]
            start = end
    if rejected.bad:
        say(f"left out {rejected.bad:,} records that cannot be read (first: {rejected.first})")


def _holding_out(pieces: Iterable[str], held_out: list[str]) -> Iterator[str]:
    """All but the first piece and every 20th after it, which go to `held_out`."""
    for number, piece in enumerate(pieces):
        if number % HELD_OUT_EVERY:
            yield piece
        else:
            held_out.append(piece)


def _beginning(texts: Sequence[str]) -> list[str]:
    """As much as is measured."""
    left, kept = MEASURED_CHARACTERS, list[str]()
    for text in texts:
        if left > 0:
            kept.append(text[:left])
            left -= len(text)
    return kept


def _measure(model: Path, texts: Sequence[str], title: str) -> dict[str, Any]:
    score: Perplexity = perplexity(load(model), texts, title=title)
    return {
        "bits_per_byte": score.bits_per_byte,
        "bytes_per_token": score.bytes / score.tokens,
        "tokens": score.tokens,
    }
