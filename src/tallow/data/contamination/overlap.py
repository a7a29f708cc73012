"""How much of which items documents have.

A passage's overlap with some text is the share of its n-grams that are in it. An item's is the largest of its
passages'; short passages count only where it has no other, and then together: the share of them that are there. So a
question that is found counts, whatever else belongs to its item, and a short answer alone does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.contamination.benchmarks import Items, Rows
from tallow.kernels.text.gram_index import Places

BEFORE, EXCERPT = 60, 240
"""Bytes of an excerpt before what was found, and of all of it."""

SPAN = pa.struct([("begin", pa.int32()), ("end", pa.int32()), ("overlap", pa.float32())])
COLUMNS = pa.schema(
    [
        ("contamination.overlap", pa.float32()),
        ("contamination.benchmark", pa.string()),
        ("contamination.item", pa.int32()),
        ("contamination.words", pa.float32()),
        ("contamination.spans", pa.list_(SPAN)),
    ]
)
"""Beside documents: the overlap of the item that has the largest, its benchmark and its record in that, from 1 (null:
none; of several the first), the share of the document's words that lie in what was found, and the bytes of that, with
the overlap of its item."""

EVIDENCE = pa.schema(
    [
        ("item", pa.int32()),
        ("overlap", pa.float32()),
        ("id", pa.binary(16)),
        ("source", pa.string()),
        ("excerpt", pa.string()),
    ]
)
"""Of each item that was found the document that has most of it, of several the one with the smallest id."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Of pairs of a row and an item, sorted: the item's overlap."""

    rows: Rows
    items: Rows
    values: npt.NDArray[np.float32]


def item_overlaps(items: Items, rows: Rows, grams: Rows) -> Overlaps:
    """The overlaps of items with rows in which n-grams were found, each pair once."""
    owners, passages = items.passages.of(grams)
    keys, found = np.unique(rows[owners] * len(items.sizes) + passages, return_counts=True)
    rows, passages = np.divmod(keys, len(items.sizes))
    owners, numbers = items.items.of(passages)
    pairs = rows[owners] * len(items.records) + numbers
    share = (found / items.sizes[passages])[owners]
    long = ~items.short[passages][owners]
    together, counts = np.unique(pairs[~long], return_counts=True)
    parts = items.shorts[together % len(items.records)]
    alone = parts > 0
    pairs = np.concatenate([pairs[long], together[alone]])
    shares = np.concatenate([share[long], counts[alone] / parts[alone]]).astype(np.float32)
    order = np.lexsort((shares, pairs))
    pairs, shares = pairs[order], shares[order]
    last = np.append(pairs[1:] != pairs[:-1], True)[: len(pairs)]
    return Overlaps(*np.divmod(pairs[last], len(items.records)), shares[last])


def annotate(documents: pa.Table, texts: pa.StringArray, items: Items) -> tuple[pa.Table, pa.Table, Rows]:
    """What documents have of benchmarks.

    Args:
        documents: N documents with their `id` and `source`.
        texts: Theirs.
        items: What is looked for.

    Returns:
        `COLUMNS` beside them, `EVIDENCE`, and the n-grams that were found.
    """
    places = items.index.search(texts, items.active)
    pairs, which = np.unique(places.rows.astype(np.int64) * items.index.count + places.grams, return_inverse=True)
    overlaps = item_overlaps(items, *np.divmod(pairs, max(1, items.index.count)))
    touching = _touching(items, pairs, overlaps)
    best, item = _best(overlaps, len(texts))
    columns = [
        pa.array(best),
        pa.array(np.array(items.names, dtype=object)[items.benchmarks[item]], pa.string(), mask=item < 0),
        pa.array(items.records[item].astype(np.int32), mask=item < 0),
        pa.array(_share_of_words(places, items.index.lengths)),
        _spans(places, touching.overlaps[which], len(texts)),
    ]
    evidence = _evidence(documents, texts, places, which, touching, overlaps)
    return pa.table(columns, schema=COLUMNS), evidence, np.unique(places.grams).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Touching:
    """Of pairs of a row and an n-gram: the largest overlap of an item that has it; and all places in `Overlaps` of such
    items, with the pair each is of."""

    overlaps: npt.NDArray[np.float32]
    owners: Rows
    found: Rows


def _touching(items: Items, pairs: Rows, overlaps: Overlaps) -> _Touching:
    rows, grams = np.divmod(pairs, max(1, items.index.count))
    by_passage, passages = items.passages.of(grams)
    by_item, numbers = items.items.of(passages)
    owners = by_passage[by_item]
    known = overlaps.rows * len(items.records) + overlaps.items
    sought = rows[owners] * len(items.records) + numbers
    found = np.searchsorted(known, sought)
    there = known[np.minimum(found, len(known) - 1)] == sought if len(known) else np.zeros(len(sought), dtype=bool)
    owners, found = owners[there], found[there]
    largest = np.zeros(len(pairs), dtype=np.float32)
    np.maximum.at(largest, owners, overlaps.values[found])
    return _Touching(largest, owners, found)


def _best(overlaps: Overlaps, count: int) -> tuple[npt.NDArray[np.float32], Rows]:
    """Of each row the largest overlap, and the first item that has it; -1: none."""
    best, item = np.zeros(count, dtype=np.float32), np.full(count, -1, dtype=np.int64)
    order = np.lexsort((-overlaps.items, overlaps.values))
    best[overlaps.rows[order]] = overlaps.values[order]  # the last one stays
    item[overlaps.rows[order]] = overlaps.items[order]
    return best, item


def _share_of_words(places: Places, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    ends = places.firsts + lengths[places.grams]
    _, rows, begins, ends = _united(places.rows, places.firsts, ends, np.zeros(len(ends)))
    covered = np.bincount(rows, weights=ends - begins, minlength=len(places.sizes))
    return (covered / np.maximum(places.sizes, 1)).astype(np.float32)


def _spans(places: Places, overlaps: npt.NDArray[np.float32], count: int) -> pa.ListArray:
    order, rows, begins, ends = _united(places.rows, places.begins, places.ends, overlaps)
    values = [pa.array(begins.astype(np.int32)), pa.array(ends.astype(np.int32)), pa.array(overlaps[order])]
    offsets = np.searchsorted(rows, np.arange(count + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(values, fields=list(SPAN)))


def _united(
    rows: npt.NDArray[np.int32], begins: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], kinds: npt.ArrayLike
) -> tuple[Rows, Rows, Rows, Rows]:
    """Ranges that overlap or touch, in one row and of one kind, as one; sorted by row, begin and kind.

    Args:
        rows, begins, ends, kinds: Of M ranges.

    Returns:
        The place among these of one that has its row and kind, row, begin and end of each.
    """
    kinds = np.asarray(kinds)
    order = np.lexsort((begins, kinds, rows))
    group = np.zeros(len(order), dtype=np.int64)
    group[1:] = np.cumsum((rows[order][1:] != rows[order][:-1]) | (kinds[order][1:] != kinds[order][:-1]))
    stride = int(ends.max(initial=0)) + 2
    low, high = begins[order] + group * stride, ends[order] + group * stride
    reach = np.maximum.accumulate(high) if len(high) else high
    new = np.ones(len(order), dtype=bool)
    new[1:] = low[1:] > reach[:-1]
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order))[: len(first)] - 1
    chosen, shift = order[first], group[first] * stride
    result = (chosen, rows[chosen].astype(np.int64), low[first] - shift, reach[last] - shift)
    by_place = np.lexsort((kinds[chosen], result[2], result[1]))
    return (chosen[by_place], result[1][by_place], result[2][by_place], result[3][by_place])


def _evidence(
    documents: pa.Table, texts: pa.StringArray, places: Places, which: Rows, touching: _Touching, overlaps: Overlaps
) -> pa.Table:
    begins = np.full(int(which.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begins, which, places.begins.astype(np.int64))  # of each row and n-gram
    first = np.full(len(overlaps.rows), np.iinfo(np.int64).max)
    np.minimum.at(first, touching.found, begins[touching.owners])  # of each row and item
    ids = documents.column("id").to_pylist()
    place = np.empty(len(ids), dtype=np.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    order = np.lexsort((place[overlaps.rows], -overlaps.values, overlaps.items))
    order = order[np.append(True, np.diff(overlaps.items[order]) > 0)[: len(order)]]
    sources = documents.column("source")
    records = [
        {
            "item": int(overlaps.items[pair]),
            "overlap": float(overlaps.values[pair]),
            "id": ids[overlaps.rows[pair]],
            "source": sources[int(overlaps.rows[pair])].as_py(),
            "excerpt": _excerpt(texts[int(overlaps.rows[pair])].as_buffer(), int(first[pair])),
        }
        for pair in order
    ]
    return pa.Table.from_pylist(records, schema=EVIDENCE)


def _excerpt(text: pa.Buffer, at: int) -> str:
    """Some of a text from a little before a byte on, in one line."""
    begin = max(0, at - BEFORE)
    return " ".join(bytes(memoryview(text)[begin : begin + EXCERPT]).decode(errors="ignore").split())
