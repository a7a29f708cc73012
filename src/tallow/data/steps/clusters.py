"""Clusters of the documents that pairs connect, found by buckets, so that no process sees more than a bucket.

A bucket connects what it is given, and tells the buckets of both ends what it has found: of each document the smallest
id that it is connected with. Once nobody is told anything new, the bucket of such an id has its whole cluster. (This is
Hash-to-Min, Rastogi et al. 2013, arXiv 1203.5387, section 3, with a bucket in the place of a node, so that most is
connected at once.) A chain takes as many rounds as the logarithm of its length; a bucket is as large as its share of
the documents, or as the largest cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates.clusters import cluster
from tallow.data.duplicates.minhash import ID
from tallow.data.groups import grouped
from tallow.data.steps.deal import answered, bucket_bits, by_row, dealt, numbers_of
from tallow.data.steps.tables import words
from tallow.data.work.step import Made, Part, Pieces, Step
from tallow.data.work.work import Work
from tallow.recipe import Section

CLUSTER = "cluster"
NEAR = pa.schema([(CLUSTER, ID), ("cluster.size", pa.int64())])
"""Beside a part: the smallest id of each document's cluster, and how many are in it; null: it is like no other."""

PAIR = ("first", "second")
MOVED = "moved"
ROW_BYTES = 64
"""What a bucket holds of a document, more or less."""


class BitsConfig(Section):
    """Documents are dealt out by the first `bits` bits of their id."""

    bits: int


class BucketConfig(Section):
    """What is asked of one of the buckets."""

    bits: int
    bucket: int


class AnswerConfig(Section):
    """So many of the tables have ids of documents; the others are clusters."""

    parts: int


class PlaceConfig(Section):
    """How many documents a part has."""

    rows: int


def find_clusters(
    work: Work, parts: Sequence[Part], pairs: Sequence[Part], part_bytes: int
) -> tuple[list[Part], Counter[str]]:
    """Which cluster each document is in.

    Args:
        parts: The documents.
        pairs: Tables of ids, `first` and `second`.
        part_bytes: Size of a bucket, more or less.

    Returns:
        Beside each part a table as `NEAR`; and counts `size <n>`, the clusters with so many documents.
    """
    bits = bucket_bits(sum(part.rows for part in parts) * ROW_BYTES, part_bytes)
    config, buckets = BitsConfig(bits=bits), range(1 << bits)
    groups = grouped(pairs, lambda part: part.rows * ROW_BYTES, part_bytes)
    given = [(config, group) for group in groups]
    linked, moved = [made for [made] in work.each(LINK, given)], True
    while moved and len(linked) > 1:
        linked = [made for [made] in work.each(LINK, [(config, [Pieces(linked, bucket)]) for bucket in buckets])]
        moved = any(part.counts[MOVED] for part in linked)
    asked = [(BucketConfig(bits=bits, bucket=bucket), [Pieces(linked, bucket)]) for bucket in buckets]
    clusters = [made for [made] in work.each(GATHER, asked)]
    ids = [made for [made] in work.each(DEAL_IDS, [(config, [part]) for part in parts])]
    both = [(AnswerConfig(parts=len(parts)), [Pieces(ids, bucket), Pieces(clusters, bucket)]) for bucket in buckets]
    answers = [made for [made] in work.each(ANSWER, both)]
    told = [(PlaceConfig(rows=part.rows), [Pieces(answers, number)]) for number, part in enumerate(parts)]
    sizes = Counter[str]()
    for part in clusters:
        sizes.update({name: int(count) for name, count in part.counts.items()})
    return [made for [made] in work.each(PLACE, told)], sizes


def _link(config: BitsConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Pairs of documents and the smallest id that each is connected with, for the buckets of both.

    Counts as `moved` what it was given that is no such pair.
    """
    pairs = pa.concat_tables(table.select(PAIR) for table in tables)
    found = cluster(pairs)
    others = found.filter(pc.call_function("not_equal", [found["id"], found["survivor"]]))
    own = pc.call_function("index_in", [pairs["second"]], pc.SetLookupOptions(_ids(found)))
    known = pc.call_function("equal", [found["survivor"].take(own), pairs["first"]])
    linked = pa.table([others["survivor"], others["id"]], names=PAIR)
    keys = np.concatenate([words(linked[name])[:, 0] for name in PAIR])
    moved = len(pairs) - (pc.call_function("sum", [known]).as_py() or 0)
    yield Made(dealt(pa.concat_tables([linked, linked]), keys, config.bits), {MOVED: moved})


def _gather(config: BucketConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The clusters whose smallest id belongs to the bucket, whole, for the buckets of their documents."""
    found = cluster(pa.concat_tables(tables))
    if config.bits:
        here = words(found["survivor"])[:, 0] >> np.uint64(64 - config.bits) == config.bucket
        found = found.filter(pa.array(here))
    sizes, documents = np.unique(found["size"].to_numpy(), return_counts=True)
    counts = {f"size {size}": int(count) // int(size) for size, count in zip(sizes, documents, strict=True)}
    yield Made(dealt(found, words(found["id"])[:, 0], config.bits), counts)


def _deal_ids(config: BitsConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    rows = pa.table([documents["id"], pa.array(np.arange(len(documents), dtype=np.int32))], names=["id", "row"])
    yield Made(dealt(rows, words(rows["id"])[:, 0], config.bits))


def _answer(config: AnswerConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """For each part the rows that have a cluster, and what it is."""
    asked, clusters = pa.concat_tables(tables[: config.parts]), pa.concat_tables(tables[config.parts :])
    places = pc.call_function("index_in", [asked["id"]], pc.SetLookupOptions(_ids(clusters)))
    there = np.flatnonzero(places.is_valid().to_numpy())
    found = clusters.take(places.take(pa.array(there)))
    answers = pa.table(
        [asked["row"].take(pa.array(there)), found["survivor"], found["size"]], names=["row", *NEAR.names]
    )
    yield Made(answered(answers, numbers_of(tables[: config.parts])[there], config.parts))


def _place(config: PlaceConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    yield Made(by_row(pa.concat_tables(tables), config.rows).cast(NEAR))


def _ids(table: pa.Table) -> pa.Array:
    return table["id"].combine_chunks()


LINK = Step(f"{__name__}:LINK", 1, BitsConfig, _link)
GATHER = Step(f"{__name__}:GATHER", 1, BucketConfig, _gather)
DEAL_IDS = Step(f"{__name__}:DEAL_IDS", 1, BitsConfig, _deal_ids)
ANSWER = Step(f"{__name__}:ANSWER", 1, AnswerConfig, _answer)
PLACE = Step(f"{__name__}:PLACE", 1, PlaceConfig, _place)
