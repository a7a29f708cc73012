"""Perplexity and bits per byte of models on held-out text."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from tallow.console import progress
from tallow.data.documents import read_documents_split
from tallow.data.manifest import MANIFEST, load_document_manifest
from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import Source, find_sources, known_kind
from tallow.engine.choices import Precision
from tallow.engine.language_model import LanguageModel, load
from tallow.errors import DataError, UsageError
from tallow.evaluate.windows import cut_windows
from tallow.files import write_json
from tallow.models.formats import open_model
from tallow.models.quantization import num_weights
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer

LONGEST_DEFAULT_WINDOW = 1024
LARGEST_MEAN_LOSS = 700.0  # nats; the exponential of more does not fit a float
DOCUMENTS_PER_BATCH = 256


class EvaluateConfig(ReadSettings):
    """Settings of the evaluate stage, and how its text is read.

    Args:
        models: The models to score, by the names they have in the result.
        file: Held-out text: a text, JSONL or parquet file (each record a document), or prepared documents, of
            which the validation split is taken.
        window: Tokens that a model sees together; None for its context, at most 1,024.
        stride: Tokens between the starts of two windows; None: windows do not overlap.
        max_tokens: Take only so many tokens from the start of the text.
        precision: In which the engine computes; `auto`: as the model is stored.
    """

    models: dict[str, Path] = Field(min_length=1)
    file: Path
    window: PositiveInt | None = None
    stride: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    precision: Precision = "auto"


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Args:
        perplexity: Exponential of the mean negative log-likelihood of a scored token. Models with different
            tokenizers cannot be compared by it.
        bits_per_byte: Negative log2-likelihood of all scored tokens over the bytes (UTF-8) that they stand for.
        tokens: Number of scored tokens.
        bytes: Number of their bytes.
        protocol: All that the figures depend on, besides the model.
    """

    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    protocol: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(config: EvaluateConfig, run: StageRun) -> dict[str, Any]:
    """Score each model on the same text; the product is `evaluation.json`, by model what `Perplexity` has.

    Returns:
        The bits per byte of each model.

    Raises:
        DataError: A model or the text cannot be read, or the text is too short.
        UsageError: The window is longer than a model's context, or the stride than the window.
    """
    texts = read_text(config.file, config)
    scores = {name: _score_model(name, texts, config, run) for name in config.models}
    write_json(run.directory / "evaluation.json", {name: score.as_json() for name, score in scores.items()})
    return {f"{name}_bits_per_byte": score.bits_per_byte for name, score in scores.items()}


def read_text(path: Path, settings: ReadSettings | None = None) -> list[str]:
    """The documents of a file, or those that prepared documents hold out.

    A file whose name tells no other kind is taken as text.

    Raises:
        DataError: The file is missing, empty, binary or damaged, or nothing is held out.
    """
    settings = settings or ReadSettings()
    if (path / MANIFEST).exists():
        held_out = load_document_manifest(path).splits["validation"]
        if not held_out.documents:
            raise DataError(f"{path} holds out no documents", "prepare them with a validation_fraction above 0")
        batches = read_documents_split(path / "validation", held_out, DOCUMENTS_PER_BATCH)
        return [text for batch in batches for text in batch.column("text").to_pylist()]
    as_text = path.is_file() and known_kind(path) is None
    sources = [Source(str(path), path, "text")] if as_text else find_sources([path])
    return [document.text for document in read_documents(sources, settings, Rejected())]


def perplexity(
    model: LanguageModel,
    text: str | Sequence[str],
    window: int | None = None,
    max_tokens: int | None = None,
    *,
    stride: int | None = None,
    title: str = "score",
) -> Perplexity:
    """Score a text in fixed windows.

    The protocol: each document is encoded by itself and cut as `cut_windows` says. Windows begin with the
    tokenizer's BOS token if its own encoding does; if not, the first token of a window is not scored (unless windows
    overlap), and its bytes do not count either. The engine computes, so it is the model that is served whose
    log-likelihoods these are, in float32 and summed in float64. On a CPU no window's score depends on the others.

    Args:
        model: The model with its tokenizer, as `load` gives them.
        text: A document, or several.
        window: Tokens that the model sees together, BOS included; None for its context, at most 1,024.
        max_tokens: Take only so many tokens from the start of the text.
        stride: Tokens between the starts of two windows; None: windows do not overlap.
        title: What the progress bar says.

    Raises:
        DataError: The text is too short to score a token, or scores are not finite.
        UsageError: The window is longer than the model's context or shorter than two tokens, or the stride than it.
    """
    tokenizer = model.tokenizer
    texts = [text] if isinstance(text, str) else text
    window = min(model.context_length, LONGEST_DEFAULT_WINDOW) if window is None else window
    bos_id = tokenizer.bos_id if tokenizer.encode("", add_special_tokens=True)[:1] == [tokenizer.bos_id] else None
    _check_windows(model.context_length, window, stride, bos_id)
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens cannot be scored", "set max_tokens to 2 at least, or leave it out")
    documents = list(_encode(tokenizer, texts, max_tokens))
    windows = [piece for ids in documents for piece in cut_windows(ids, window, stride, bos_id)]
    if not windows:
        raise DataError("the text is too short to score: it takes two tokens at least", "evaluate on a longer text")
    tokens = sum(piece.scored for piece in windows)
    counts = Counter(token for piece in windows for token in piece.ids[-piece.scored :])
    num_bytes = sum(count * len(tokenizer.token_bytes(token)) for token, count in counts.items())
    loss = 0.0
    with progress(title, tokens, "tokens") as bar:
        log_probs = model.log_probs_batch(piece.ids for piece in windows)
        for piece, log_probs_T in zip(windows, log_probs, strict=True):
            loss -= float(log_probs_T[-piece.scored :].sum(dtype=np.float64))
            bar.advance(piece.scored)
    if not loss / tokens < LARGEST_MEAN_LOSS:
        raise DataError("the model's scores are not finite", "its weights are damaged, or its precision is too low")
    return Perplexity(
        perplexity=math.exp(loss / tokens),
        bits_per_byte=loss / math.log(2) / num_bytes,
        tokens=tokens,
        bytes=num_bytes,
        protocol={
            "window": window,
            "stride": stride,
            "max_tokens": max_tokens,
            "bos_id": bos_id,
            "documents": len(documents),
            "text_tokens": sum(len(ids) for ids in documents),
            "text_sha256": _text_hash(texts),
            "tokenizer": tokenizer.fingerprint,
            "precision": model.engine.runner.precision,
        },
    )


def _score_model(name: str, texts: Sequence[str], config: EvaluateConfig, run: StageRun) -> Perplexity:
    path = config.models[name]
    model = load(path, config.precision)
    score = perplexity(model, texts, config.window, config.max_tokens, stride=config.stride, title=name)
    run.ledger.tokens += score.tokens
    run.ledger.flops += 2.0 * num_weights(open_model(path).model) * score.tokens
    return score


def _check_windows(longest: int, window: int, stride: int | None, bos_id: int | None) -> None:
    if window > longest:
        raise UsageError(f"a window of {window:,} tokens is longer than the model's context, {longest:,}", "shorten it")
    if window < 2:
        raise UsageError(f"a window of {window} leaves nothing to predict a token from", "make it 2 at least")
    room = window - (bos_id is not None)
    if stride is not None and stride > room:
        raise UsageError(f"a stride of {stride:,} passes over tokens of the text", f"make it {room:,} at most")


def _encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int | None) -> Iterator[list[int]]:
    """The tokens of each document that has any, `max_tokens` in all."""
    left = sys.maxsize if max_tokens is None else max_tokens
    for start in range(0, len(texts), DOCUMENTS_PER_BATCH):
        for ids in tokenizer.encode_batch(texts[start : start + DOCUMENTS_PER_BATCH]):
            kept = ids[:left]
            left -= len(kept)
            if kept:
                yield kept
            if not left:
                return


def _text_hash(texts: Sequence[str]) -> str:
    """SHA-256 of the documents with a zero byte between each two; of one document, that of its file."""
    digest = sha256()
    for index, text in enumerate(texts):
        digest.update(b"\0" * (index > 0) + text.encode())
    return digest.hexdigest()
