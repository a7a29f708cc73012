"""Lines or paragraphs that occur before, found by steps on parts (duplicates/units.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.duplicates.cuts import flat_cuts
from tallow.data.duplicates.units import UnitSettings, cut_units, hash_units, judge_groups
from tallow.data.steps.deal import answered, bucket_bits, dealt, numbers_of
from tallow.data.steps.tables import kept, texts_of, words
from tallow.data.work.step import Made, Part, Pieces, Step, beside
from tallow.data.work.work import Work
from tallow.recipe import Section

GROUP_BYTES = 44
LONG_UNITS = 3
"""A unit is so many times as long as the shortest one, on the average."""


class FindConfig(Section):
    """Groups are dealt out by the first `bits` bits of their hash."""

    settings: UnitSettings
    bits: int


class UnitStep(Section):
    settings: UnitSettings


def repeated_units(
    work: Work, parts: Sequence[Part], verdicts: Sequence[Part], settings: UnitSettings, part_bytes: int
) -> list[Part]:
    """What is to be cut out of the documents that are kept so far: `CUTS`, beside each part.

    Each has the counts `units` (that are long enough), `repeated_units` and `repeated_bytes` (that go).

    Args:
        parts: The documents.
        verdicts: Beside them.
        settings: Which units go.
        part_bytes: Of text in a part, more or less.
    """
    units = len(parts) * part_bytes // (LONG_UNITS * (settings.min_chars + 1))
    bits = bucket_bits(units * GROUP_BYTES, part_bytes)
    find = FindConfig(settings=settings, bits=bits)
    config = UnitStep(settings=settings)
    found = work.each(FIND, [(find, inputs) for inputs in beside(parts, verdicts)])
    units, groups = ([tables[number] for tables in found] for number in range(2))
    answers = [made for [made] in work.each(JUDGE, [(config, [Pieces(groups, bucket)]) for bucket in range(1 << bits)])]
    told = [(config, [*inputs, Pieces(answers, number)]) for number, inputs in enumerate(beside(verdicts, units))]
    return [made for [made] in work.each(CUT, told)]


def _find(config: FindConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """`UNITS`, and a batch of `GROUPS` for each bucket."""
    documents, verdicts = tables
    rows = np.flatnonzero(kept(verdicts))
    documents = documents.take(rows)
    units, groups = hash_units(texts_of(documents), words(documents.column("id")), rows, config.settings)
    yield Made(units)
    yield Made(dealt(groups, groups.column("word_0").to_numpy(), config.bits))


def _judge(config: UnitStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of `ANSWERS` for each part."""
    answers, parts = judge_groups(pa.concat_tables(tables), numbers_of(tables), config.settings)
    yield Made(answered(answers, parts, len(tables)))


def _cut(config: UnitStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    verdicts, units, *answers = tables
    cuts, repeated = cut_units(units, pa.concat_tables(answers), verdicts.num_rows, config.settings)
    _, begins, ends = flat_cuts(cuts)
    yield Made(
        cuts, {"units": units.num_rows, "repeated_units": repeated, "repeated_bytes": int((ends - begins).sum())}
    )


FIND = Step(f"{__name__}:FIND", 1, FindConfig, _find)
JUDGE = Step(f"{__name__}:JUDGE", 1, UnitStep, _judge)
CUT = Step(f"{__name__}:CUT", 1, UnitStep, _cut)
