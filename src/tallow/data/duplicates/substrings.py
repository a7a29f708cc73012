"""Substrings that occur before: in a document with a smaller id, or further up in the same one.

What is found is exact: all bytes of all windows of `min_bytes` that occur before (Lee et al. 2022, arXiv 2107.06499),
wherever documents lie. Functions on tables, to be done part by part:

1. `find_keys`: texts → `SEGMENTS`, in which all windows are, known by their keys, and a row for each key: `KEYS`;
2. `judge_keys`: those of all parts with some keys → which of them are worth a look;
3. `take_pieces`: the segments with these keys → `LOCAL`, and their bytes, once for what is the same: `PIECES`;
4. `compare_pieces`: those of all parts with some keys → runs of windows that occur before: `RUNS`;
5. `cut_runs`: these, beside `LOCAL` → `CUTS`.

Step 1 sends about half a byte a byte of text, step 3 five bytes a byte that occurs twice. Equal windows have equal
keys, so no cutting into parts or buckets hides one from the other. What shares a key must fit in memory: pieces of
about 1.25 `min_bytes` that have the same `min_bytes` / 2 bytes in them, and differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tallow.data.duplicates.cuts import flat_cuts, make_cuts
from tallow.errors import CapacityError
from tallow.kernels.text.repeats import LONGEST, Pieces, find_repeats
from tallow.kernels.text.segments import find_segments
from tallow.recipe import Section

SEGMENTS = pa.schema([*((name, pa.int32()) for name in ("row", "begin", "count", "group")), ("again", pa.bool_())])
"""Sorted by key; `group` numbers the keys of a part."""

KEYS = pa.schema([("key", pa.uint64()), ("bytes", pa.int64()), ("several", pa.bool_()), ("group", pa.int32())])
"""A key, bytes of the segments with it, and whether equal windows may be among these alone."""

ANSWERS = pa.schema([("group", pa.int32())])
"""Keys of a part whose windows may occur elsewhere."""

LOCAL = pa.schema([("row", pa.int32()), ("begin", pa.int32()), ("count", pa.int32()), ("leader", pa.int32())])
"""Segments sorted by id and place; `leader` is the first one with the same bytes."""

PIECES = pa.schema(
    [
        *((name, pa.uint64()) for name in ("key", "word_0", "word_1")),
        *((name, pa.int32()) for name in ("begin", "number")),
        ("again", pa.bool_()),
        ("bytes", pa.large_binary()),
    ]
)
"""Leaders: key, id of the document, place in it, row in `LOCAL`."""

RUNS = pa.schema([(name, pa.int32()) for name in ("number", "first", "behind")])
"""Of the segment with this row in `LOCAL` the windows from `first` on that occur before."""

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class SubstringSettings(Section):
    """Which substrings are cut.

    Args:
        min_bytes: Shorter ones stay. Lee et al. take 50 tokens, which are about 200 bytes of English.
        within: Cut also what is repeated in the document where it first occurs.
    """

    min_bytes: int = Field(default=200, ge=16, le=2**20)
    within: bool = True

    @property
    def gram(self) -> int:
        """Bytes that a key is made of."""
        return self.min_bytes // 2


class FoundKeys(NamedTuple):
    """The segments of some texts: `SEGMENTS` and `KEYS`."""

    segments: pa.Table
    keys: pa.Table


class TakenPieces(NamedTuple):
    """What is compared of a part: `LOCAL` and `PIECES`."""

    local: pa.Table
    pieces: pa.Table


def find_keys(texts: pa.StringArray, rows: Rows, settings: SubstringSettings) -> FoundKeys:
    """Segments of some of a part's texts, whose rows are given."""
    segments = find_segments(texts, settings.min_bytes, settings.gram)
    order = np.argsort(segments.keys, kind="stable")
    keys, counts, again = segments.keys[order], segments.counts[order], segments.again[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(new)
    times = np.diff(starts, append=len(order))
    sizes = _sums(counts.astype(np.int64) + settings.min_bytes - 1, starts)
    several = (times > 1) | (_sums(again.astype(np.int64), starts) > 0)
    columns = [rows[segments.rows[order]], segments.begins[order], counts, np.cumsum(new) - 1, again]
    return FoundKeys(
        _table(columns, SEGMENTS), _table([keys[starts], sizes, several, np.arange(len(starts))], KEYS)
    )  # fmt: skip


def judge_keys(keys: pa.Table, parts: Rows) -> tuple[pa.Table, Rows, int]:
    """All `KEYS` with some keys, and the part that each is of → `ANSWERS`, the part that each is for, and the bytes."""
    key = keys.column("key").to_numpy()
    order = np.argsort(key, kind="stable")
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = key[order][1:] != key[order][:-1]
    starts = np.flatnonzero(new)
    times = np.diff(starts, append=len(order))
    several = keys.column("several").to_numpy()[order]
    found = order[np.repeat((times > 1) | (_sums(several.astype(np.int64), starts) > 0), times)]
    answers = _table([keys.column("group").to_numpy()[found]], ANSWERS)
    return answers, parts[found], int(keys.column("bytes").to_numpy()[found].sum())


def take_pieces(
    texts: pa.StringArray,
    ids_D2: npt.NDArray[np.uint64],
    found: FoundKeys,
    groups: npt.NDArray[np.int32],
    settings: SubstringSettings,
) -> TakenPieces:
    """The segments with these keys, of a part's texts (all of them) with these ids."""
    wanted = np.zeros(len(found.keys), dtype=np.bool_)
    wanted[groups] = True
    rows, begins, counts, group, again = (found.segments.column(name).to_numpy() for name in SEGMENTS.names)
    chosen = np.flatnonzero(wanted[group])
    rank = np.empty(len(texts), dtype=np.int64)
    rank[np.lexsort(ids_D2.T[::-1])] = np.arange(len(texts))
    chosen = chosen[np.lexsort((begins[chosen], rank[rows[chosen]]))]
    rows, begins, counts, group, again = (array[chosen] for array in (rows, begins, counts, group, again))
    data = _slices(texts, rows, begins, counts + np.int32(settings.min_bytes - 1))
    leaders = _leaders(data)
    firsts = np.flatnonzero(leaders == np.arange(len(leaders)))
    keys = found.keys.column("key").to_numpy()[group[firsts]]
    columns = [keys, *ids_D2[rows[firsts]].T, begins[firsts], firsts, again[firsts]]
    head = _table(columns, pa.schema(list(PIECES)[:-1]))
    return TakenPieces(
        _table([rows, begins, counts, leaders], LOCAL),
        head.append_column(PIECES.field("bytes"), data.take(pa.array(firsts))),
    )


def compare_pieces(pieces: pa.Table, parts: Rows, settings: SubstringSettings) -> tuple[pa.Table, Rows]:
    """All `PIECES` with some keys, and the part that each is of → `RUNS`, and the part that each is for.

    Raises:
        CapacityError: Pieces with the same key have more than 2 GB.
    """
    columns = [pieces.column(name).to_numpy() for name in PIECES.names[:-1]]
    order = np.lexsort(columns[3::-1])
    keys, high, low, _, numbers, again = (column[order] for column in columns)
    parts = parts[order]
    data = _one(pieces.column("bytes")).take(pa.array(order))
    documents = np.cumsum(_changes(high, low), dtype=np.int32)
    leaders = _leaders(data)
    is_leader = leaders == np.arange(len(leaders))
    several = np.bincount(np.cumsum(_changes(keys))[is_leader] - 1, minlength=1)
    compared = np.flatnonzero(is_leader & ((several[np.cumsum(_changes(keys)) - 1] > 1) | again))
    runs = _runs(data.take(pa.array(compared)), documents[compared], keys[compared], settings)
    runs[:, 0] = compared[runs[:, 0]]
    sizes = pc.call_function("binary_length", [data]).to_numpy()
    all_runs = _with_followers(runs, leaders, documents, sizes - settings.min_bytes + 1, settings.within)
    return _table([numbers[all_runs[:, 0]], *all_runs[:, 1:].T], RUNS), parts[all_runs[:, 0]]


def cut_runs(local: pa.Table, runs: pa.Table, texts: pa.StringArray, settings: SubstringSettings) -> pa.Table:
    """`CUTS` of a part's texts, where characters stay whole."""
    rows, begins, counts, leaders = (local.column(name).to_numpy() for name in LOCAL.names)
    given = np.stack([runs.column(name).to_numpy().astype(np.int64) for name in RUNS.names], axis=1)
    number, first, behind = _with_followers(given, leaders.astype(np.int64), rows, counts, settings.within).T
    begin = begins[number] + first
    end = begins[number] + behind + settings.min_bytes - 1
    return whole_characters(make_cuts(rows[number], begin, end, len(texts)), texts)


def whole_characters(cuts: pa.Table, texts: pa.StringArray) -> pa.Table:
    """`CUTS` without characters that they have only a part of."""
    rows, begins, ends = flat_cuts(cuts)
    if not len(rows):
        return cuts
    _, offsets_buffer, data_buffer = texts.buffers()
    assert offsets_buffer is not None
    assert data_buffer is not None
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[texts.offset :].astype(np.int64)
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    first, behind = offsets[rows] + begins, offsets[rows] + ends
    last = offsets[rows + 1]
    for _ in range(3):  # bytes that a character has behind its first one, at most
        first += (data[np.minimum(first, last - 1)] & 0xC0) == 0x80
        behind -= (behind < last) & ((data[np.minimum(behind, last - 1)] & 0xC0) == 0x80)
    some = first < behind
    rows, first, behind = rows[some], first[some], behind[some]
    return make_cuts(rows, first - offsets[rows], behind - offsets[rows], len(texts))


def _runs(
    data: pa.LargeBinaryArray,
    documents: npt.NDArray[np.int32],
    keys: npt.NDArray[np.uint64],
    settings: SubstringSettings,
) -> Rows:
    """Runs of windows that occur before among pieces with the same key, in the order given."""
    groups = np.append(np.flatnonzero(_changes(keys)), len(keys))
    offsets, array = _buffers(data)
    if np.diff(offsets[groups] + groups).max(initial=0) > LONGEST:
        raise CapacityError("too many documents share a substring", "drop exact and near duplicates first")
    return find_repeats(Pieces(array, offsets, documents, groups), settings.min_bytes, settings.within)


def _with_followers(
    runs: Rows, leaders: Rows, documents: npt.NDArray[np.int32], counts: npt.NDArray[np.int32], within: bool
) -> Rows:
    """The runs of leaders, which are given, and those of the pieces with the same bytes that follow them.

    All windows of a follower occur before; unless what is in the same document does not count: then it is for those of
    its leader's document as for that.
    """
    followers = np.flatnonzero(leaders != np.arange(len(leaders)))
    alike = (
        np.zeros(len(followers), dtype=np.bool_) if within else documents[followers] == documents[leaders[followers]]
    )
    gone = followers[~alike]
    whole = np.stack([gone, np.zeros_like(gone), counts[gone].astype(np.int64)], axis=1)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    same = followers[alike]
    begin, end = (np.searchsorted(runs[:, 0], leaders[same], side) for side in ("left", "right"))
    lengths = end - begin
    copied = runs[np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())]
    copied[:, 0] = np.repeat(same, lengths)
    return np.concatenate([runs, whole, copied])


def _leaders(data: pa.LargeBinaryArray) -> Rows:
    """For each the first one with the same bytes."""
    values = pc.call_function("dictionary_encode", [data]).indices.to_numpy()
    firsts = np.unique(values, return_index=True)[1]  # values are numbered as they come
    return firsts[values].astype(np.int64)


def _slices(texts: pa.StringArray, rows: Rows, begins: Rows, sizes: npt.NDArray[np.int32]) -> pa.LargeBinaryArray:
    """Bytes of texts from these places on."""
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer or b"", dtype=np.int32)[texts.offset :]
    data = memoryview(data_buffer or b"")
    first = offsets[rows].astype(np.int64) + begins
    joined = b"".join([data[at:end] for at, end in zip(first.tolist(), (first + sizes).tolist(), strict=True)])
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(rows), [None, pa.py_buffer(bounds), pa.py_buffer(joined)]
    )


def _buffers(data: pa.LargeBinaryArray) -> tuple[Rows, npt.NDArray[np.uint8]]:
    """Offsets and bytes."""
    _, offsets, values = data.buffers()
    bounds = (
        np.frombuffer(offsets, dtype=np.int64)[data.offset : data.offset + len(data) + 1]
        if offsets
        else np.zeros(1, np.int64)
    )
    return bounds, np.frombuffer(values or b"", dtype=np.uint8)


def _one(column: pa.ChunkedArray) -> pa.LargeBinaryArray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


def _changes(*columns: npt.NDArray[np.uint64]) -> Flags:
    """Which rows begin a run of equal ones."""
    new = np.zeros(len(columns[0]), dtype=np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _sums(values: Rows, starts: Rows) -> Rows:
    return np.add.reduceat(values, starts) if len(starts) else values[:0]


def _table(columns: list[npt.NDArray[np.generic]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
