"""Of documents that are alike, the one with the smallest id stays.

What makes two alike is a key of 16 bytes: the digest of their texts, or the name of a cluster. Keys of all parts are
dealt out into buckets by their first bits, each bucket says who in it must go, and each part hears that of its own.
So no process sees more than a bucket, and neither the order of parts nor their size matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.steps.deal import answered, bucket_bits, dealt, numbers_of
from tallow.data.steps.tables import VERDICTS, kept, words
from tallow.data.work.step import Made, Part, Pieces, Step, beside
from tallow.data.work.work import Work
from tallow.recipe import Section

KEY_BYTES = 40
KEYS_SCHEMA = pa.schema([*((f"word_{i}", pa.uint64()) for i in range(4)), ("row", pa.int32())])


class KeyConfig(Section):
    """Keys are dealt out by their first `bits` bits; documents whose key is null are like no other."""

    column: str
    bits: int


class SmallestConfig(Section):
    pass


class DropConfig(Section):
    """What is said of those that go."""

    reason: str


def unique(
    work: Work,
    parts: Sequence[Part],
    verdicts: Sequence[Part],
    keys: Sequence[Part],
    column: str,
    reason: str,
    part_bytes: int,
) -> list[Part]:
    """New verdicts: of the documents that were kept so far and have the same key, only the first by its id is kept.

    Args:
        parts: The documents.
        verdicts: Beside them.
        keys: Beside them, tables with the column of keys.
        column: Its name.
        reason: What drops the others.
        part_bytes: Size of a bucket, more or less.
    """
    bits = bucket_bits(sum(part.rows for part in parts) * KEY_BYTES, part_bytes)
    config = KeyConfig(column=column, bits=bits)
    found = [made for [made] in work.each(KEYS, [(config, inputs) for inputs in beside(parts, verdicts, keys)])]
    buckets = [(SmallestConfig(), [Pieces(found, bucket)]) for bucket in range(1 << bits)]
    return drop_told(work, verdicts, [made for [made] in work.each(SMALLEST, buckets)], reason)


def drop_told(work: Work, verdicts: Sequence[Part], losers: Sequence[Part], reason: str) -> list[Part]:
    """New verdicts, by tables that have a batch of rows to be dropped for each part."""
    config = DropConfig(reason=reason)
    told = [(config, [verdict, Pieces(losers, number)]) for number, verdict in enumerate(verdicts)]
    return [made for [made] in work.each(DROP, told)]


def _keys(config: KeyConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of keys and ids for each bucket."""
    documents, verdicts, named = tables
    column = named.column(config.column)
    rows = np.flatnonzero(kept(verdicts) & column.is_valid().to_numpy())
    keys, ids = words(column.take(rows)), words(documents.column("id").take(rows))
    columns = [pa.array(column) for column in (*keys.T.copy(), *ids.T.copy(), rows.astype(np.int32))]
    yield Made(dealt(pa.table(columns, schema=KEYS_SCHEMA), keys[:, 0], config.bits))


def _smallest(_: SmallestConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch for each part: rows of documents that go."""
    together = pa.concat_tables(tables)
    found = np.stack([together.column(i).to_numpy() for i in range(4)])
    order = np.lexsort(found[::-1])
    keys = found[:2, order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (keys[:, 1:] == keys[:, :-1]).all(axis=0)
    losers = np.sort(order[again])  # by part, as they came
    rows = pa.table({"row": together.column("row").to_numpy()[losers].astype(np.int32)})
    yield Made(answered(rows, numbers_of(tables)[losers], len(tables)))


def _drop(config: DropConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    verdicts, *losers = tables
    rows = np.concatenate([table.column("row").to_numpy() for table in losers])
    gone = np.zeros(verdicts.num_rows, dtype=bool)
    gone[rows] = True
    reasons = pc.call_function("if_else", [pa.array(gone), pa.scalar(config.reason), verdicts.column("dropped_by")])
    yield Made(pa.table([reasons], schema=VERDICTS), {config.reason: len(rows)})


KEYS = Step(f"{__name__}:KEYS", 1, KeyConfig, _keys)
SMALLEST = Step(f"{__name__}:SMALLEST", 1, SmallestConfig, _smallest)
DROP = Step(f"{__name__}:DROP", 1, DropConfig, _drop)
