"""Near-duplicates of all documents: beside each part, which cluster each of its documents is in.

The functions are those of `tallow.data.duplicates`; here they are done part by part and bucket by bucket. Rows that may
belong together (sets that are the same, bands that are the same) are dealt out into as many buckets as there are
parts, so that a process holds about as much of them as a part is. Only the sets of documents that share a band with
another travel to where they are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates import minhash
from tallow.data.duplicates.clusters import cluster
from tallow.data.duplicates.minhash import ID, DocumentSets, MinHashSettings
from tallow.data.steps.tables import texts_of
from tallow.data.work.step import Input, Made, Part, Step, pieces
from tallow.data.work.work import Work
from tallow.kernels.text.minhash import Sets, shingle_sets
from tallow.recipe import Section

CLUSTER = "cluster"
NEAR = pa.schema([(CLUSTER, ID), ("cluster.size", pa.int64())])
"""Beside a part: the smallest id of each document's cluster, and how many are in it; null: it is like no other."""

SETS_SCHEMA = pa.schema([("id", ID), ("shingles", pa.large_list(pa.uint64()))])
LEAST_BUCKETS = 4
"""So that few large parts, too, give several processes something to do."""


class BucketConfig(Section):
    """How near-duplicates are found, and in how many buckets."""

    settings: MinHashSettings
    buckets: int


class NoConfig(Section):
    pass


def near_duplicates(work: Work, parts: Sequence[Part], settings: MinHashSettings) -> tuple[list[Part], Part]:
    """Find the clusters of near-duplicates.

    Returns:
        Beside each part a table as `NEAR`; and all clusters, whose counts tell how many there are of each size, how
        many documents were compared, and how many of large buckets were not.
    """
    config, nothing = BucketConfig(settings=settings, buckets=max(LEAST_BUCKETS, len(parts))), NoConfig()
    buckets = range(config.buckets)

    def dealt(given: Sequence[Part], bucket: int) -> list[Input]:
        return [Input(part, bucket) for part in given]

    signed = [made for [made] in work.each(SIGN, [(config, [Input(part)]) for part in parts])]
    same = work.each(SAME, [(config, dealt(signed, bucket)) for bucket in buckets])
    bands = [made[1] for made in same]
    shared = work.each(SHARED, [(_Parts(parts=len(parts)), dealt(bands, bucket)) for bucket in buckets])
    wanted = [made[1] for made in shared]
    sets = [
        made
        for [made] in work.each(
            SETS, [(config, [Input(part), *dealt(wanted, number)]) for number, part in enumerate(parts)]
        )
    ]
    compared = [
        made
        for [made] in work.each(
            COMPARE, [(config, [Input(shared[bucket][0]), *dealt(sets, bucket)]) for bucket in buckets]
        )
    ]
    pairs = [*(made[0] for made in same), *compared]
    [[clusters]] = work.each(CLUSTERS, [(nothing, [Input(part) for part in pairs])])
    beside = [made for [made] in work.each(PLACE, [(nothing, [Input(part), Input(clusters)]) for part in parts])]
    counts = Counter[str]()
    for part in compared:
        counts.update({name: int(count) for name, count in part.counts.items()})
    return beside, Part(clusters.path, clusters.rows, {**clusters.counts, **counts})


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


def _clusters(_: NoConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """All clusters; counts `size <n>`, the clusters with so many documents."""
    clusters = cluster(pa.concat_tables(tables))
    sizes, documents = np.unique(clusters["size"].to_numpy(), return_counts=True)
    yield Made(
        clusters, {f"size {size}": int(count) // int(size) for size, count in zip(sizes, documents, strict=True)}
    )


def _place(_: NoConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, clusters = tables
    places = pc.call_function("index_in", [_ids(documents)], pc.SetLookupOptions(_ids(clusters)))
    columns = [clusters[name].combine_chunks().take(places) for name in ("survivor", "size")]
    yield Made(pa.table(columns, schema=NEAR))


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
CLUSTERS = Step(f"{__name__}:CLUSTERS", 1, NoConfig, _clusters)
PLACE = Step(f"{__name__}:PLACE", 1, NoConfig, _place)
