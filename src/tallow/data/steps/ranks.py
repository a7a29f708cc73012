"""Documents by their rank in a corpus: those from one rank to another stay.

Documents are ordered by a value and, where these are equal, by their id, so each has a rank whatever parts there are.
The documents at the two bounds are found digit by digit of 16 bits: all parts count how many documents have each next
digit, until so few are left that they can be laid side by side. So no process sees more than a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.steps.tables import VERDICTS, kept, words
from tallow.data.work.step import Made, Part, Step, beside
from tallow.data.work.work import Work
from tallow.recipe import Section

DIGIT = 16
WORDS = ("value", "high", "low")
"""Of 64 bits each: the value, in an order of whole numbers, and the id."""
DIGITS = 64 // DIGIT * len(WORDS)
FEW = 4096
KEYS_SCHEMA = pa.schema([*((name, pa.uint64()) for name in WORDS), ("row", pa.int32()), ("weight", pa.int64())])

Measure = Literal["documents", "bytes"]
Key = tuple[int, int, int]


class RankConfig(Section):
    """What documents are ordered by (those without a value have no rank), and what ranks count."""

    column: str
    measure: Measure


class DigitConfig(Section):
    """Digits of keys that are known."""

    prefix: tuple[int, ...]


class BetweenConfig(Section):
    """Documents with keys from `low` (None: the first) to before `high` (None: behind the last) stay."""

    low: Key | None
    high: Key | None
    reason: str


def keep_ranks(
    work: Work,
    parts: Sequence[Part],
    verdicts: Sequence[Part],
    columns: Sequence[Part],
    column: str,
    begin: float,
    end: float,
    reason: str,
    measure: Measure = "documents",
) -> list[Part]:
    """New verdicts: of the documents that were kept so far, those whose rank is from `begin` to before `end` stay.

    Args:
        parts: The documents.
        verdicts: Beside them.
        columns: Beside them, tables with the column of numbers.
        column: Its name. Documents without a number go.
        begin, end: Shares of all that have a rank, from 0, the smallest, to 1.
        reason: What drops the others.
        measure: What is counted. With `bytes` a bound may lie within a document, which then belongs to what is above.
    """
    config = RankConfig(column=column, measure=measure)
    given = [(config, inputs) for inputs in beside(parts, verdicts, columns)]
    keys = [made for [made] in work.each(RANK_KEYS, given)]
    total = sum(int(part.counts["weight"]) for part in keys)
    low, high = (_key_at(work, keys, round(share * total), total) for share in (begin, end))
    bounds = BetweenConfig(low=low if begin > 0 else None, high=high, reason=reason)
    return [made for [made] in work.each(BETWEEN, [(bounds, inputs) for inputs in beside(verdicts, keys)])]


def _key_at(work: Work, keys: Sequence[Part], rank: int, total: int) -> Key | None:
    """The key that is at a rank; None: none is, as it lies behind the last."""
    if rank >= total:
        return None
    prefix: tuple[int, ...] = ()
    while len(prefix) < DIGITS:
        config = DigitConfig(prefix=prefix)
        weights, rows = np.zeros(1 << DIGIT, dtype=np.int64), np.zeros(1 << DIGIT, dtype=np.int64)
        for [made] in work.each(COUNT_DIGITS, [(config, [part]) for part in keys]):
            table = made.read()
            digits = table.column("digit").to_numpy()
            weights[digits] += table.column("weight").to_numpy()
            rows[digits] += table.column("rows").to_numpy()
        ends = np.cumsum(weights)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit] - weights[digit])
        prefix = (*prefix, digit)
        if rows[digit] <= FEW:
            break
    config = DigitConfig(prefix=prefix)
    left = [made.read() for [made] in work.each(GATHER, [(config, [part]) for part in keys])]
    table = pa.concat_tables(left).sort_by([(name, "ascending") for name in WORDS])
    row = int(np.searchsorted(np.cumsum(table.column("weight").to_numpy()), rank, side="right"))
    value, high, low = (int(table.column(name)[row].as_py()) for name in WORDS)
    return value, high, low


def ordered(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Whole numbers in the order of these, of which none may be NaN."""
    bits = (values + 0.0).view(np.uint64)  # -0 becomes 0
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _rank_keys(config: RankConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, verdicts, columns = tables
    values = columns.column(config.column).cast(pa.float64()).fill_null(np.nan).to_numpy()
    rows = np.flatnonzero(kept(verdicts) & ~np.isnan(values))
    ids = words(documents.column("id"))[rows]
    sizes = np.ones(len(rows), dtype=np.int64)
    if config.measure == "bytes":
        sizes = pc.call_function("binary_length", [documents.column("text")]).to_numpy().astype(np.int64)[rows]
    columns_of_keys = [ordered(values[rows]), *ids.T, rows.astype(np.int32), sizes]
    table = pa.table([pa.array(np.ascontiguousarray(each)) for each in columns_of_keys], schema=KEYS_SCHEMA)
    yield Made(table, {"weight": int(sizes.sum())})


def _with_prefix(table: pa.Table, prefix: Sequence[int]) -> npt.NDArray[np.bool_]:
    found = np.ones(table.num_rows, dtype=bool)
    for place, digit in enumerate(prefix):
        found &= _digits(table, place) == digit
    return found


def _digits(table: pa.Table, place: int) -> npt.NDArray[np.int64]:
    word, within = divmod(place, 64 // DIGIT)
    shift = np.uint64(64 - DIGIT * (within + 1))
    return ((table.column(WORDS[word]).to_numpy() >> shift) & np.uint64((1 << DIGIT) - 1)).astype(np.int64)


def _count_digits(config: DigitConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """For each next digit of keys that begin with the prefix: their weight, and how many they are."""
    [keys] = tables
    chosen = _with_prefix(keys, config.prefix)
    digits, places = np.unique(_digits(keys, len(config.prefix))[chosen], return_inverse=True)
    weights = np.zeros(len(digits), dtype=np.int64)
    np.add.at(weights, places, keys.column("weight").to_numpy()[chosen])
    rows = np.bincount(places, minlength=len(digits)).astype(np.int64)
    yield Made(pa.table({"digit": digits, "weight": weights, "rows": rows}))


def _gather(config: DigitConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [keys] = tables
    yield Made(keys.filter(pa.array(_with_prefix(keys, config.prefix))))


def _between(config: BetweenConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    verdicts, keys = tables
    stays = np.ones(keys.num_rows, dtype=bool)
    if config.low is not None:
        stays &= ~_less(keys, config.low)
    if config.high is not None:
        stays &= _less(keys, config.high)
    gone = kept(verdicts)
    gone[keys.column("row").to_numpy()[stays]] = False
    reasons = pc.call_function("if_else", [pa.array(gone), pa.scalar(config.reason), verdicts.column("dropped_by")])
    yield Made(pa.table([reasons], schema=VERDICTS), {config.reason: int(gone.sum())})


def _less(keys: pa.Table, bound: Key) -> npt.NDArray[np.bool_]:
    less, equal = np.zeros(keys.num_rows, dtype=bool), np.ones(keys.num_rows, dtype=bool)
    for name, limit in zip(WORDS, bound, strict=True):
        word = keys.column(name).to_numpy()
        less |= equal & (word < np.uint64(limit))
        equal &= word == np.uint64(limit)
    return less


RANK_KEYS = Step(f"{__name__}:RANK_KEYS", 1, RankConfig, _rank_keys)
COUNT_DIGITS = Step(f"{__name__}:COUNT_DIGITS", 1, DigitConfig, _count_digits)
GATHER = Step(f"{__name__}:GATHER", 1, DigitConfig, _gather)
BETWEEN = Step(f"{__name__}:BETWEEN", 1, BetweenConfig, _between)
