"""Near-duplicates by MinHash and banding (Broder 1997; Leskovec et al., Mining of massive datasets, chapter 3).

Functions on tables, to be done part by part:

1. `sign_documents`: texts → `SIGNED`, a row a document;
2. `same_sets`: rows with the same set of shingles → pairs, and the first of each, with which alone the rest goes on;
3. `band_rows`: those → `BANDS`, a row a band and document; what shares a band's key meets in a bucket;
4. `shared_buckets`: the rows that do not lie alone;
5. `compare`: these and the sets of their documents → `PAIRS`, verified by the Jaccard similarity of the real sets;
6. `cluster` (clusters.py): all pairs → which document each one is dropped for.

Steps 2, 4 and 5 can be done for each piece of `split_rows` on its own: what they find in a bucket depends on it alone,
so all pieces together find the same, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tallow.kernels.text.minhash import Rows, Sets, draw_permutations, jaccard, shingle_sets, sign
from tallow.kernels.text.words import HASH_FACTOR
from tallow.recipe import Section

ID = pa.binary(16)

PAIRS = pa.schema([("first", ID), ("second", ID), ("similarity", pa.float64())])
"""Ids of two documents, the smaller one first."""

BANDS = pa.schema([("band", pa.int16()), ("key", pa.uint64()), ("id", ID), ("part", pa.int32()), ("row", pa.int32())])
"""A band of a document, and where the document is."""


class MinHashSettings(Section):
    """How near-duplicates are found. The defaults are datatrove 0.10's, which verifies nothing.

    Args:
        shingle_words: Words of a shingle, in which all numbers are alike, and case and accents do not count. Documents
            with fewer words have none, and are like no other.
        bands: Two documents are compared if they agree in all of at least one of so many bands …
        rows: … of so many permutations each.
        threshold: Jaccard similarity of the sets of shingles from which on documents are near-duplicates.
        seed: Of the permutations.
        exhaustive: In a bucket with at most so many documents each is compared with each.
        representatives: In a larger one each is compared with at most so many.
    """

    shingle_words: int = Field(default=5, ge=1, le=100)
    bands: int = Field(default=14, ge=1, le=1000)
    rows: int = Field(default=8, ge=1, le=100)
    threshold: float = Field(default=0.8, gt=0, le=1)
    seed: int = Field(default=1, ge=0)
    exhaustive: int = Field(default=32, ge=1, le=1000)
    representatives: int = Field(default=64, ge=1)


class SameSets(NamedTuple):
    """Pairs of documents with the same set of shingles (`PAIRS`), and what goes on: the first of each such group."""

    pairs: pa.Table
    firsts: pa.Table


class DocumentSets(NamedTuple):
    """The sets of shingles of some documents, whose ids are sorted: 8 bytes a word."""

    ids: pa.FixedSizeBinaryArray
    sets: Sets


class Compared(NamedTuple):
    """Pairs that are verified (`PAIRS`), and counts: `comparisons`, and the documents `uncompared` in large buckets."""

    pairs: pa.Table
    counts: dict[str, int]


def detection_probability(similarity: npt.ArrayLike, bands: int, rows: int) -> npt.NDArray[np.float64]:
    """The S-curve: with which probability documents of this Jaccard similarity agree in one of the bands."""
    return 1 - (1 - np.asarray(similarity, dtype=np.float64) ** rows) ** bands


def s_curve(settings: MinHashSettings) -> str:
    """What the bands of some settings promise, in a sentence."""
    similarities = (0.5, 0.6, 0.7, 0.8, 0.9)
    chances = detection_probability(similarities, settings.bands, settings.rows).tolist()
    curve = ", ".join(f"{chance:.1%} at {alike}" for alike, chance in zip(similarities, chances, strict=True))
    return f"{settings.bands} bands of {settings.rows} rows find pairs by their similarity: {curve}"


def sign_documents(ids: pa.FixedSizeBinaryArray, texts: pa.StringArray, settings: MinHashSettings) -> pa.Table:
    """Columns `id`, `row`, `size` and `key` of the set of shingles, and `bands`, a list of a hash a band.

    Texts with too few words for a shingle are left out.
    """
    signatures = sign(texts, settings.shingle_words, draw_permutations(settings.bands * settings.rows, settings.seed))
    found = signatures.sizes > 0
    least_DBR = signatures.least_DH[found].reshape(-1, settings.bands, settings.rows)
    keys_DB = chain_keys(least_DBR)
    return pa.table(
        {
            "id": ids.filter(pa.array(found)),
            "row": np.flatnonzero(found).astype(np.int32),
            "size": signatures.sizes[found],
            "key": signatures.keys[found],
            "bands": pa.FixedSizeListArray.from_arrays(pa.array(keys_DB.ravel()), settings.bands),
        }
    )


def chain_keys(values_DBR: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 bits of the R values of each band, as `hash_chain` makes them; products wrap on purpose."""
    factor, half = np.uint64(HASH_FACTOR), np.uint64(32)
    keys_DB = values_DBR[:, :, 0]
    for row in range(1, values_DBR.shape[2]):
        keys_DB = (keys_DB ^ (keys_DB >> half)) * factor + values_DBR[:, :, row]
    return keys_DB


def split_rows(rows: pa.Table, pieces: int) -> list[pa.Table]:
    """Rows by the upper bits of their column `key`, so that rows with the same key come together."""
    assert 1 <= pieces <= 2**32
    upper = rows["key"].to_numpy() >> np.uint64(32)
    piece = (upper * np.uint64(pieces)) >> np.uint64(32)
    ordered = rows.take(pa.array(np.argsort(piece, kind="stable")))
    bounds = [0, *np.cumsum(np.bincount(piece.astype(np.int64), minlength=pieces)).tolist()]
    return [ordered.slice(begin, end - begin) for begin, end in pairwise(bounds)]


def same_sets(signed: pa.Table) -> SameSets:
    """Find the documents with the same set of shingles (by 64 bits and size), so that no bucket is full of them."""
    signed = signed.sort_by([("key", "ascending"), ("size", "ascending"), ("id", "ascending")])
    starts, counts = _groups(signed["key"].to_numpy(), signed["size"].to_numpy())
    is_first = np.zeros(len(signed), dtype=np.bool_)
    is_first[starts] = True
    others = np.flatnonzero(~is_first)
    firsts = np.repeat(starts, counts)[others]
    ids = signed["id"]
    return SameSets(_pairs(ids, firsts, others, np.ones(len(others))), signed.filter(pa.array(is_first)))


def band_rows(signed: pa.Table) -> pa.Table:
    """A row for each band of each document, which has the column `part`, too: `BANDS`."""
    lists = signed["bands"].combine_chunks()
    bands = lists.type.list_size
    keys = lists.flatten()
    numbers = np.tile(np.arange(bands, dtype=np.int16), len(signed))
    documents = signed.select(["id", "part", "row"]).take(pa.array(np.repeat(np.arange(len(signed)), bands)))
    return pa.table([numbers, keys, *documents.columns], schema=BANDS)


def shared_buckets(rows: pa.Table) -> pa.Table:
    """Those of some `BANDS` that share their band and key with another document, sorted by band, key and id."""
    rows = rows.sort_by([("band", "ascending"), ("key", "ascending"), ("id", "ascending")])
    _, counts = _groups(rows["band"].to_numpy(), rows["key"].to_numpy())
    return rows.filter(pa.array(np.repeat(counts > 1, counts)))


def document_sets(ids: pa.FixedSizeBinaryArray, texts: pa.StringArray, settings: MinHashSettings) -> DocumentSets:
    """The sets of shingles of these documents, to compare them."""
    order = pc.call_function("array_sort_indices", [ids])
    return DocumentSets(ids.take(order), shingle_sets(texts.take(order), settings.shingle_words))


def compare(shared: pa.Table, documents: DocumentSets, settings: MinHashSettings) -> Compared:
    """Compare the documents of each bucket (rows of `shared_buckets`), whose sets must be among those given.

    In a bucket of up to `exhaustive` documents each is compared with each. A larger one is gone through by id: each
    document is compared with the representatives so far, until one is similar to it; if none is, it becomes one itself.
    So there every document is similar to a representative or is one, and takes at most `representatives` comparisons;
    what is missed are pairs whose documents belong to different representatives (unless they meet in another band), and
    documents that are like none of the first `representatives`, which are counted.
    """
    if not len(shared):
        return Compared(PAIRS.empty_table(), {"comparisons": 0, "uncompared": 0})
    members = pc.call_function("index_in", [shared["id"]], pc.SetLookupOptions(documents.ids)).combine_chunks()
    assert members.null_count == 0
    numbers = members.to_numpy().astype(np.int64)
    starts, counts = _groups(shared["band"].to_numpy(), shared["key"].to_numpy())
    comparisons = uncompared = 0
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for firsts, seconds in _pairs_of_small(numbers, starts, counts, settings.exhaustive):
        comparisons += len(firsts)
        pairs.append(np.stack([firsts, seconds], axis=1))
    different = _different(pairs, len(documents.ids))
    similarities = jaccard(documents.sets, different[:, 0], different[:, 1])
    found = [different[similarities >= settings.threshold]]
    for start, count in zip(starts, counts, strict=True):
        if count > settings.exhaustive:
            similar, compared, left = _by_representatives(numbers[start : start + count], documents.sets, settings)
            found.append(similar)
            comparisons += compared
            uncompared += left
    verified = _different(found, len(documents.ids))
    similarities = jaccard(documents.sets, verified[:, 0], verified[:, 1])
    table = _pairs(documents.ids, verified[:, 0], verified[:, 1], similarities)
    return Compared(table, {"comparisons": comparisons, "uncompared": uncompared})


def _pairs_of_small(numbers: Rows, starts: Rows, counts: Rows, exhaustive: int) -> Iterator[tuple[Rows, Rows]]:
    """All pairs of the buckets of each size."""
    for size in range(2, exhaustive + 1):
        begins = starts[counts == size]
        if len(begins):
            one, other = np.triu_indices(size, 1)
            yield numbers[begins[:, None] + one].ravel(), numbers[begins[:, None] + other].ravel()


def _different(pairs: list[Rows], documents: int) -> Rows:
    """Sorted pairs of numbers below `documents`, none twice."""
    firsts, seconds = np.concatenate(pairs).T
    return np.stack(np.divmod(np.unique(firsts * documents + seconds), documents), axis=1)


def _by_representatives(bucket: Rows, sets: Sets, settings: MinHashSettings) -> tuple[Rows, int, int]:
    """Pairs with representatives, how many comparisons that took, and how many documents are left."""
    pairs = [np.empty((0, 2), dtype=np.int64)]
    comparisons = 0
    for _ in range(settings.representatives):
        if len(bucket) < 2:
            return np.concatenate(pairs), comparisons, 0
        representatives, others = np.full(len(bucket) - 1, bucket[0]), bucket[1:]
        similar = jaccard(sets, representatives, others) >= settings.threshold
        pairs.append(np.stack([representatives[similar], others[similar]], axis=1))
        comparisons += len(others)
        bucket = others[~similar]
    return np.concatenate(pairs), comparisons, len(bucket)


def _groups(*columns: npt.NDArray[np.generic]) -> tuple[Rows, Rows]:
    """Where runs of rows that are equal in all columns start, and how long they are."""
    rows = len(columns[0])
    new = np.zeros(rows, dtype=np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(new)
    return starts, np.diff(starts, append=rows)


def _pairs(
    ids: pa.FixedSizeBinaryArray | pa.ChunkedArray, firsts: Rows, seconds: Rows, similarities: npt.NDArray[np.float64]
) -> pa.Table:
    return pa.table(
        {"first": ids.take(pa.array(firsts)), "second": ids.take(pa.array(seconds)), "similarity": similarities},
        schema=PAIRS,
    )
