"""Columns beside documents, by which others decide: what language they are in, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from tallow.data.language.identify import LanguageConfig, identify, load_language_model
from tallow.data.quality import families
from tallow.data.quality.c4 import C4Lines
from tallow.data.steps.tables import texts_of
from tallow.data.work.step import Made, Step
from tallow.recipe import Section


class LanguageStep(Section):
    """How languages are identified, and the hash of the model that does it."""

    settings: LanguageConfig
    model: str


class QualityStep(Section):
    """Which lines C4's metrics are about; the others need no settings."""

    lines: C4Lines


def _languages(config: LanguageStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    yield Made(identify(texts_of(documents), load_language_model(config.settings), config.settings))


def _quality(config: QualityStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    yield Made(pa.table(dict(families.measure(texts_of(documents), config.lines))))


LANGUAGES = Step(f"{__name__}:LANGUAGES", 1, LanguageStep, _languages)
QUALITY = Step(f"{__name__}:QUALITY", 1, QualityStep, _quality)
