"""Substrings that occur before, found by steps on parts (duplicates/substrings.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.duplicates.cuts import flat_cuts
from tallow.data.duplicates.substrings import (
    FoundKeys,
    SubstringSettings,
    compare_pieces,
    cut_runs,
    find_keys,
    judge_keys,
    take_pieces,
)
from tallow.data.steps.deal import answered, bucket_bits, dealt, numbers_of
from tallow.data.steps.tables import kept, texts_of, words
from tallow.data.work.step import Made, Part, Pieces, Step, beside
from tallow.data.work.work import Work
from tallow.recipe import Section

KEY_BYTES = 21
BYTES = "bytes"


class DealConfig(Section):
    """What is found is dealt out by the first `bits` bits of its key."""

    settings: SubstringSettings
    bits: int


class SubstringStep(Section):
    settings: SubstringSettings


def repeated_substrings(
    work: Work, parts: Sequence[Part], verdicts: Sequence[Part], settings: SubstringSettings, part_bytes: int
) -> list[Part]:
    """What is to be cut out of the documents that are kept so far: `CUTS`, beside each part, with `repeated_bytes`.

    Args:
        parts: The documents.
        verdicts: Beside them.
        settings: Which substrings go.
        part_bytes: Of text in a part, more or less.

    Raises:
        CapacityError: More than 2 GB of text share half a substring.
    """
    config = SubstringStep(settings=settings)
    bits = bucket_bits(len(parts) * part_bytes * 2 * KEY_BYTES // (settings.min_bytes - settings.gram), part_bytes)
    find = DealConfig(settings=settings, bits=bits)
    found = work.each(FIND, [(find, inputs) for inputs in beside(parts, verdicts)])
    segments, keys = ([tables[number] for tables in found] for number in range(2))
    judged = [made for [made] in work.each(JUDGE, [(config, [Pieces(keys, bucket)]) for bucket in range(1 << bits)])]
    take = DealConfig(settings=settings, bits=bucket_bits(sum(int(part.counts[BYTES]) for part in judged), part_bytes))
    told = [
        (take, [*inputs, *(Pieces([own], bucket) for bucket in range(1 << bits)), Pieces(judged, number)])
        for number, (inputs, own) in enumerate(zip(beside(parts, segments), keys, strict=True))
    ]
    taken = work.each(TAKE, told)
    local, passages = ([tables[number] for tables in taken] for number in range(2))
    buckets = [(config, [Pieces(passages, bucket)]) for bucket in range(1 << take.bits)]
    compared = [made for [made] in work.each(COMPARE, buckets)]
    told = [(config, [*inputs, Pieces(compared, number)]) for number, inputs in enumerate(beside(parts, local))]
    return [made for [made] in work.each(CUT, told)]


def _find(config: DealConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """`SEGMENTS`, and a batch of `KEYS` for each bucket, so that all together they are sorted."""
    documents, verdicts = tables
    rows = np.flatnonzero(kept(verdicts))
    found = find_keys(texts_of(documents.take(rows)), rows, config.settings)
    yield Made(found.segments)
    yield Made(dealt(found.keys, found.keys.column("key").to_numpy(), config.bits))


def _judge(_: SubstringStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of `ANSWERS` for each part."""
    answers, parts, size = judge_keys(pa.concat_tables(tables), numbers_of(tables))
    yield Made(answered(answers, parts, len(tables)), {BYTES: size})


def _take(config: DealConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """`LOCAL`, and a batch of `PIECES` for each bucket."""
    documents, segments, *rest = tables
    keys, answers = (pa.concat_tables(some) for some in (rest[: len(rest) // 2], rest[len(rest) // 2 :]))
    ids, groups = words(documents.column("id")), answers.column("group").to_numpy()
    taken = take_pieces(texts_of(documents), ids, FoundKeys(segments, keys), groups, config.settings)
    yield Made(taken.local)
    yield Made(dealt(taken.pieces, taken.pieces.column("key").to_numpy(), config.bits))


def _compare(config: SubstringStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of `RUNS` for each part."""
    runs, parts = compare_pieces(pa.concat_tables(tables), numbers_of(tables), config.settings)
    yield Made(answered(runs, parts, len(tables)))


def _cut(config: SubstringStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, local, *runs = tables
    cuts = cut_runs(local, pa.concat_tables(runs), texts_of(documents), config.settings)
    _, begins, ends = flat_cuts(cuts)
    yield Made(cuts, {"repeated_bytes": int((ends - begins).sum())})


FIND = Step(f"{__name__}:FIND", 1, DealConfig, _find)
JUDGE = Step(f"{__name__}:JUDGE", 1, SubstringStep, _judge)
TAKE = Step(f"{__name__}:TAKE", 1, DealConfig, _take)
COMPARE = Step(f"{__name__}:COMPARE", 1, SubstringStep, _compare)
CUT = Step(f"{__name__}:CUT", 1, SubstringStep, _cut)
