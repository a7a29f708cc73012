"""Importance weights of documents for a target (DSIR), as columns beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.selection.importance import (
    KEY,
    LOG_WEIGHT,
    ImportanceConfig,
    count_buckets,
    gumbel,
    log_ratios,
    log_weights,
)
from tallow.data.sources import HashedFile, SourceNames, find_sources
from tallow.data.steps.tables import kept, texts_of, words
from tallow.data.work.step import Made, Part, Step, beside
from tallow.data.work.work import Work
from tallow.errors import DataError
from tallow.recipe import Section

TOGETHER = 64
"""Tables of counts that are added at a time."""

BATCH_BYTES = 2**24


class TargetStep(Section):
    """What texts of the target are, and how n-grams are counted."""

    files: tuple[HashedFile, ...]
    settings: ImportanceConfig
    reading: ReadSettings


class SumConfig(Section):
    pass


def weigh_importance(
    work: Work,
    parts: Sequence[Part],
    verdicts: Sequence[Part],
    target: SourceNames,
    config: ImportanceConfig,
    reading: ReadSettings,
) -> list[Part]:
    """Columns `dsir.log_weight` and `dsir.key` beside documents; those with the largest keys are to be kept.

    The corpus is the documents that have been kept so far.

    Raises:
        DataError: The target cannot be read, or has no words.
    """
    wanted = TargetStep(files=work.inputs.files(target), settings=config, reading=reading)
    [[target_counts]] = work.each(COUNT_TARGET, [(wanted, ())])
    counts = [made for [made] in work.each(COUNT, [(config, inputs) for inputs in beside(parts, verdicts)])]
    while len(counts) > 1:
        groups = [counts[begin : begin + TOGETHER] for begin in range(0, len(counts), TOGETHER)]
        counts = [made for [made] in work.each(ADD, [(SumConfig(), group) for group in groups])]
    [[ratios]] = work.each(RATIOS, [(config, [target_counts, counts[0]])])
    return [made for [made] in work.each(WEIGH, [(config, [part, ratios]) for part in parts])]


def _count_target(config: TargetStep, _: Sequence[pa.Table]) -> Iterator[Made]:
    totals = np.zeros(1 << config.settings.bits, dtype=np.int64)
    batch, size = list[str](), 0
    sources = find_sources([file.path for file in config.files])
    for document in read_documents(sources, config.reading, Rejected()):
        batch.append(document.text)
        size += len(document.text)
        if size > BATCH_BYTES:
            totals += count_buckets(pa.array(batch, pa.string()), config.settings)
            batch, size = [], 0
    totals += count_buckets(pa.array(batch, pa.string()), config.settings)
    if not totals.any():
        raise DataError("the target of the selection has no words", "give more of it")
    yield Made(pa.table({"count": totals}))


def _count(config: ImportanceConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, verdicts = tables
    texts = texts_of(documents.filter(pa.array(kept(verdicts))))
    yield Made(pa.table({"count": count_buckets(texts, config)}))


def _add(_: SumConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    yield Made(pa.table({"count": np.sum([table.column("count").to_numpy() for table in tables], axis=0)}))


def _ratios(config: ImportanceConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    target, corpus = (table.column("count").to_numpy() for table in tables)
    yield Made(pa.table({"ratio": log_ratios(target, corpus, config)}))


def _weigh(config: ImportanceConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, ratios = tables
    weights = log_weights(texts_of(documents), ratios.column("ratio").to_numpy(), config)
    noise = gumbel(words(documents.column("id")), config.seed)
    yield Made(pa.table({LOG_WEIGHT: weights, KEY: weights + noise}))


COUNT_TARGET = Step(f"{__name__}:COUNT_TARGET", 1, TargetStep, _count_target)
COUNT = Step(f"{__name__}:COUNT", 1, ImportanceConfig, _count)
ADD = Step(f"{__name__}:ADD", 1, SumConfig, _add)
RATIOS = Step(f"{__name__}:RATIOS", 1, ImportanceConfig, _ratios)
WEIGH = Step(f"{__name__}:WEIGH", 1, ImportanceConfig, _weigh)
