"""Near-duplicates of all documents: beside each part, which cluster each of its documents is in.

The functions are those of `tallow.data.duplicates`; here they are done part by part and bucket by bucket. Rows that may
belong together (sets that are the same, bands that are the same) are dealt out into buckets, so that a process holds
about as much of them as a part is. Only the sets of documents that share a band with another travel to where they are
compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates import minhash
from tallow.data.duplicates.minhash import ID, DocumentSets, MinHashSettings
from tallow.data.steps.clusters import find_clusters
from tallow.data.steps.tables import texts_of
from tallow.data.work.step import Made, Part, Pieces, Step, pieces
from tallow.data.work.work import Work
from tallow.kernels.text.minhash import Sets, shingle_sets
from tallow.recipe import Section

SETS_SCHEMA = pa.schema([("id", ID), ("shingles", pa.large_list(pa.uint64()))])
LEAST_BUCKETS = 4
"""So that few large parts, too, give several processes something to do."""

BAND_BYTES = 40
"""Of a row for each band of a document, more or less."""


class BucketConfig(Section):
    """How near-duplicates are found, and into how many buckets what is found is dealt."""

    settings: MinHashSettings
    buckets: int


def near_duplicates(
    work: Work, parts: Sequence[Part], settings: MinHashSettings, part_bytes: int
) -> tuple[list[Part], Counter[str]]:
    """Find the clusters of near-duplicates.

    Returns:
        Beside each part a table as `NEAR`; and counts: `size <n>`, the clusters with so many documents, `comparisons`,
        and the documents `uncompared` in large buckets.
    """
    config = BucketConfig(settings=settings, buckets=max(LEAST_BUCKETS, len(parts)))
    buckets = range(config.buckets)
    size = sum(part.rows for part in parts) * settings.bands * BAND_BYTES
    sign = BucketConfig(settings=settings, buckets=max(LEAST_BUCKETS, -(-size // part_bytes)))
    signed = [made for [made] in work.each(SIGN, [(sign, [part]) for part in parts])]
    found = work.each(SAME, [(config, [Pieces(signed, bucket)]) for bucket in range(sign.buckets)])
    same, bands = ([tables[number] for tables in found] for number in range(2))
    several = work.each(SHARED, [(_Parts(parts=len(parts)), [Pieces(bands, bucket)]) for bucket in buckets])
    shared, wanted = ([tables[number] for tables in several] for number in range(2))
    asked = [(config, [part, Pieces(wanted, number)]) for number, part in enumerate(parts)]
    sets = [made for [made] in work.each(SETS, asked)]
    dealt = [(config, [part, Pieces(sets, bucket)]) for bucket, part in enumerate(shared)]
    compared = [made for [made] in work.each(COMPARE, dealt)]
    near, counts = find_clusters(work, parts, [*same, *compared], part_bytes)
    for part in compared:
        counts.update({name: int(count) for name, count in part.counts.items()})
    return near, counts


class _Parts(Section):
    """How many parts of documents there are."""

    parts: int


def _sign(config: BucketConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Signatures, a batch for each bucket of sets."""
    [documents] = tables
    signed = minhash.sign_documents(_ids(documents), texts_of(documents), config.settings)
    yield _dealt(signed, config.buckets)


def _same(config: BucketConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Pairs of documents with the same set; bands of the others, a batch for each bucket of bands."""
    parts = pa.array(np.repeat(np.arange(len(tables), dtype=np.int32), [table.num_rows for table in tables]))
    found = minhash.same_sets(pa.concat_tables(tables).append_column("part", parts))
    yield Made(found.pairs)
    yield _dealt(minhash.band_rows(found.firsts), config.buckets)


def _shared(config: _Parts, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Bands that several documents have; which documents these are, a batch for each part."""
    rows = minhash.shared_buckets(pa.concat_tables(tables))
    yield Made(rows.select(["band", "key", "id"]))
    places = (rows["part"].to_numpy().astype(np.int64) << 32) | rows["row"].to_numpy()
    places = np.unique(places)
    wanted = pa.table({"row": (places & (2**32 - 1)).astype(np.int32)})
    yield Made(pieces(wanted, np.searchsorted(places >> 32, np.arange(config.parts)).tolist()))


def _sets(config: BucketConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The sets of shingles of the documents that are to be compared, a batch for each bucket."""
    documents, *wanted = tables
    all_rows = np.unique(np.concatenate([table["row"].to_numpy() for table in wanted]))
    sets = shingle_sets(texts_of(documents.select(["text"]).take(all_rows)), config.settings.shingle_words)
    shingles = pa.LargeListArray.from_arrays(pa.array(sets.offsets), pa.array(sets.shingles))
    table = pa.table([_ids(documents).take(pa.array(all_rows)), shingles], schema=SETS_SCHEMA)
    rows = np.concatenate([np.searchsorted(all_rows, piece["row"].to_numpy()) for piece in wanted])
    starts = np.cumsum([0, *(piece.num_rows for piece in wanted)])[:-1].tolist()
    yield Made(pieces(table.take(rows), starts))


def _compare(config: BucketConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Verified pairs."""
    shared, *sets = tables
    together = pa.concat_tables(sets).combine_chunks()
    together = together.take(pc.call_function("array_sort_indices", [together["id"]]))
    lists = together["shingles"].combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    offsets = lists.offsets.to_numpy().astype(np.int64)
    shingles = Sets(offsets - offsets[0], lists.values.to_numpy()[offsets[0] :])
    found = minhash.compare(shared, DocumentSets(_ids(together), shingles), config.settings)
    yield Made(found.pairs, found.counts)


def _ids(table: pa.Table) -> pa.FixedSizeBinaryArray:
    ids = table["id"].combine_chunks()
    return pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids


def _dealt(rows: pa.Table, buckets: int) -> Made:
    """Rows, a batch for each bucket, of which the upper bits of their key are the name."""
    tables = minhash.split_rows(rows, buckets)
    starts = np.cumsum([0, *(table.num_rows for table in tables)])[:-1].tolist()
    return Made(pieces(pa.concat_tables(tables), starts))


SIGN = Step(f"{__name__}:SIGN", 1, BucketConfig, _sign)
SAME = Step(f"{__name__}:SAME", 1, BucketConfig, _same)
SHARED = Step(f"{__name__}:SHARED", 1, _Parts, _shared)
SETS = Step(f"{__name__}:SETS", 1, BucketConfig, _sets)
COMPARE = Step(f"{__name__}:COMPARE", 1, BucketConfig, _compare)
