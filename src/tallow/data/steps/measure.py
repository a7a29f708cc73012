"""Columns beside documents, by which others decide: how long they are, in what language, how good, how private."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.edits import EDITS
from tallow.data.language.identify import LanguageConfig, identify, load_language_model
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.privacy.scrub import find_private
from tallow.data.quality import families
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.classifier import load_classifier
from tallow.data.quality.ngram import load_ngrams
from tallow.data.steps.tables import characters, texts_of
from tallow.data.work.step import Made, Step
from tallow.once import once
from tallow.recipe import Section

CHARS = "chars"


class SizesStep(Section):
    pass


class LanguageStep(Section):
    """How languages are identified, and the hash of the model that does it."""

    settings: LanguageConfig
    model: str


class QualityStep(Section):
    """Which lines C4's metrics are about; the others need no settings."""

    lines: C4Lines


class ScoreStep(Section):
    """A column of a model's scores.

    Args:
        column: Its name.
        kind: Of the model.
        sha256: Of the model's files.
        model: Where they are.
    """

    incidental = frozenset(("model",))

    column: str
    kind: Literal["classifier", "ngrams"]
    sha256: str
    model: Path


class PrivacyStep(Section):
    """What is private, and the hash of the model that finds names, if one does."""

    settings: PrivacyConfig
    names: str | None = None

    def result_settings(self) -> dict[str, Any]:
        """Where the model is does not matter, only what is in it."""
        values = super().result_settings()
        if self.settings.name is not None:
            del values["settings"]["name"]["model"]
        return values


def _sizes(_: SizesStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Characters, white space at the ends not counted."""
    [documents] = tables
    yield Made(pa.table({CHARS: characters(documents["text"])}))


def _languages(config: LanguageStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    yield Made(identify(texts_of(documents), load_language_model(config.settings), config.settings))


def _quality(config: QualityStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    yield Made(pa.table(dict(families.measure(texts_of(documents), config.lines))))


def _scores(config: ScoreStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    yield Made(pa.table({config.column: _load_scorer(config.kind, config.model, config.sha256)(texts_of(documents))}))


@once()
def _load_scorer(kind: str, model: Path, sha256: str) -> Callable[[pa.StringArray], npt.NDArray[np.floating]]:  # noqa: ARG001
    return load_classifier(model).probabilities if kind == "classifier" else load_ngrams(model).perplexities


def _private(config: PrivacyStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """`privacy.<kind>`, how many of each there are, and the edits that replace them."""
    [documents] = tables
    found = find_private(texts_of(documents), config.settings)
    columns = {f"privacy.{kind}": counts for kind, counts in found.counts.items()}
    totals = {f"found {kind}": int(np.sum(counts)) for kind, counts in found.counts.items()}
    yield Made(pa.table({**columns, "edits": found.edits.cast(EDITS)}), totals)


SIZES = Step(f"{__name__}:SIZES", 1, SizesStep, _sizes)
LANGUAGES = Step(f"{__name__}:LANGUAGES", 1, LanguageStep, _languages)
QUALITY = Step(f"{__name__}:QUALITY", 1, QualityStep, _quality)
SCORES = Step(f"{__name__}:SCORES", 1, ScoreStep, _scores)
PRIVATE = Step(f"{__name__}:PRIVATE", 1, PrivacyStep, _private)
