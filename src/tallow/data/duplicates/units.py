"""Lines or paragraphs that occur before: in a document with a smaller id, or further up in the same one.

Functions on tables, to be done part by part:

1. `hash_units`: texts → their units, grouped by what is equal, and a row for each group: `GROUPS`;
2. `judge_groups`: those of all parts with some hashes → what goes of each group;
3. `cut_units`: this, beside the units of a part → `CUTS`.

A part sends one row a group, however often it holds the unit: what all documents have (a notice below each page, say)
takes a row a part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.data.duplicates.cuts import make_cuts
from tallow.kernels.text.units import UnitKind, find_units
from tallow.recipe import Section

UNITS = pa.schema([(name, pa.int32()) for name in ("row", "begin", "end", "group")])
"""Sorted by group, and in a group by id and place."""

GROUPS = pa.schema(
    [*((f"word_{i}", pa.uint64()) for i in range(4)), *((name, pa.int32()) for name in ("begin", "count", "group"))]
)
"""Hash of a unit, id of the first document with it, where it is first, how often it occurs; sorted by hash."""

ANSWERS = pa.schema([("group", pa.int32()), ("first", pa.bool_())])
"""Groups of a part that are repeated, and whether the first unit of each is the first of all."""

Rows = npt.NDArray[np.int64]


class UnitSettings(Section):
    """Which lines or paragraphs are cut.

    Args:
        unit: A line, or a paragraph (lines between blank ones).
        min_chars: Those with fewer characters stay.
        min_count: Those that occur less often in the whole corpus stay.
        within: Cut also what is repeated in the document where it first occurs.
    """

    unit: UnitKind = "line"
    min_chars: int = Field(default=40, ge=1)
    min_count: int = Field(default=2, ge=2)
    within: bool = True


class HashedUnits(NamedTuple):
    """The units of some texts: `UNITS` and `GROUPS`."""

    units: pa.Table
    groups: pa.Table


def hash_units(
    texts: pa.StringArray, ids_D2: npt.NDArray[np.uint64], rows: Rows, settings: UnitSettings
) -> HashedUnits:
    """Units of some of a part's texts, whose rows and ids are given."""
    units = find_units(texts, settings.unit, settings.min_chars)
    rank = np.empty(len(texts), dtype=np.int64)
    rank[np.lexsort(ids_D2.T[::-1])] = np.arange(len(texts))
    by_place = np.argsort(rank[units.rows], kind="stable")
    order = by_place[np.lexsort(units.hashes_U2[by_place].T[::-1])]
    hashes_U2 = units.hashes_U2[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (hashes_U2[1:] != hashes_U2[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    first = order[starts]
    columns = [rows[units.rows[order]], units.begins[order], units.ends[order], np.cumsum(new) - 1]
    groups = [
        *hashes_U2[starts].T,
        *ids_D2[units.rows[first]].T,
        units.begins[first],
        np.diff(starts, append=len(order)),
        np.arange(len(starts)),
    ]
    return HashedUnits(_table(columns, UNITS), _table(groups, GROUPS))


def judge_groups(groups: pa.Table, parts: Rows, settings: UnitSettings) -> tuple[pa.Table, Rows]:
    """All `GROUPS` with some hashes, and the part that each is of → `ANSWERS`, and the part that each is for."""
    columns = [groups.column(i).to_numpy() for i in range(len(GROUPS))]
    order = np.lexsort(columns[4::-1])
    high, low = columns[0][order], columns[1][order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(new)
    counts = np.add.reduceat(columns[5][order].astype(np.int64), starts) if len(starts) else starts
    repeated = np.repeat(counts >= settings.min_count, np.diff(starts, append=len(order)))
    found = order[repeated]
    return _table([columns[6][found], new[repeated]], ANSWERS), parts[found]


def cut_units(units: pa.Table, answers: pa.Table, count: int, settings: UnitSettings) -> tuple[pa.Table, int]:
    """`CUTS` of a part of so many documents, and how many units that cuts."""
    rows, begins, ends, groups = (units.column(i).to_numpy() for i in range(len(UNITS)))
    starts = np.searchsorted(groups, np.arange(groups[-1] + 1 if len(groups) else 0))
    repeated, first = np.zeros((2, len(starts)), dtype=np.bool_)
    numbers = answers.column("group").to_numpy()
    repeated[numbers] = True
    first[numbers] = answers.column("first").to_numpy()
    stays = np.zeros(len(rows), dtype=np.bool_)
    if settings.within:
        stays[starts[first]] = True
    else:
        stays = first[groups] & (rows == rows[starts][groups])
    goes = repeated[groups] & ~stays
    return make_cuts(rows[goes], begins[goes], ends[goes], count), int(goes.sum())


def _table(columns: list[npt.NDArray[np.generic]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
