"""Models that score texts, trained on files of the user's: classifiers, and n-gram models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.quality.classifier import ClassifierConfig, train_classifier
from tallow.data.quality.ngram import NgramConfig, train_ngrams
from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import expand_globs, find_sources

BATCH = 10_000
"""Texts in one array."""


def classifier(good: Iterable[str], bad: Iterable[str], directory: Path, text_field: str, bits: int) -> dict[str, Any]:
    """Train a classifier on files of good and bad examples, and write it.

    Returns:
        What it says of the examples that were held out: its report.

    Raises:
        DataError: A file is unusable, or there are too few examples.
    """
    settings = ReadSettings(text_field=text_field)
    kinds = [pa.concat_arrays([*_texts(names, settings), pa.array([], pa.string())]) for names in (good, bad)]
    learned = train_classifier(kinds[0], kinds[1], ClassifierConfig(bits=bits))
    learned.save(directory)
    return {"good": len(kinds[0]), "bad": len(kinds[1]), **asdict(learned.report), "product": str(directory)}


def ngrams(names: Iterable[str], directory: Path, text_field: str, order: int, memory_mb: int) -> dict[str, Any]:
    """Train an n-gram model on files of text, and write it.

    Returns:
        `words` that it was trained on, and `ngrams` that it knows.

    Raises:
        DataError: A file is unusable, or there is no text.
    """
    texts = list(_texts(names, ReadSettings(text_field=text_field)))
    model = train_ngrams(texts, NgramConfig(order=order, memory_mb=memory_mb))
    model.save(directory)
    return {"words": model.words, "ngrams": sum(len(table.keys) for table in model.tables), "product": str(directory)}


def _texts(names: Iterable[str], settings: ReadSettings) -> Iterator[pa.StringArray]:
    batch: list[str] = []
    for document in read_documents(find_sources(expand_globs(names)), settings, Rejected()):
        batch.append(document.text)
        if len(batch) == BATCH:
            yield pa.array(batch, pa.string())
            batch = []
    if batch:
        yield pa.array(batch, pa.string())
