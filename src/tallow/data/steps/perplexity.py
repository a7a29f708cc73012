"""Perplexities of documents under an n-gram model, as a column beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from tallow.data.quality.ngram import SETTINGS, TABLES, NgramModel, load_ngrams
from tallow.data.steps.tables import texts_of
from tallow.data.work.step import Made, Step
from tallow.errors import DataError
from tallow.files import fingerprint_files, hash_file, hash_value
from tallow.recipe import Section

PERPLEXITY = "perplexity"


class PerplexityStep(Section):
    """The directory of a model that `NgramModel.save` has written, and the hash of what is in it."""

    incidental = frozenset(("model",))

    model: Path
    sha256: str


def perplexity_step(model: Path) -> PerplexityStep:
    """The settings of the step for a model.

    Raises:
        DataError: There is none.
    """
    files = [model / name for name in (TABLES, SETTINGS)]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"there is no n-gram model in {model}: {missing[0].name} is missing", "train one")
    return PerplexityStep(model=model, sha256=hash_value([hash_file(file) for file in files]))


def _perplexities(config: PerplexityStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A column `perplexity`, NaN for documents without words."""
    [documents] = tables
    model = _read(config.model, fingerprint_files(config.model))
    yield Made(pa.table({PERPLEXITY: model.perplexities(texts_of(documents))}))


@functools.lru_cache(maxsize=2)
def _read(model: Path, fingerprint: str) -> NgramModel:  # noqa: ARG001
    return load_ngrams(model)


PERPLEXITIES = Step(f"{__name__}:PERPLEXITIES", 1, PerplexityStep, _perplexities)
