"""The items of benchmarks as passages: what is looked for in documents.

Each string of an item's record is a passage, be it deep in lists and objects. A passage's n-grams are those of
`tallow.kernels.text.gram_index`: with fewer words than an n-gram it is short, and its whole text is looked for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from tallow.data.read import read_records
from tallow.data.sources import HashedFile
from tallow.errors import DataError, UsageError
from tallow.kernels.text.gram_index import MOST_WORDS, GramIndex
from tallow.once import once
from tallow.recipe import Section

Rows = npt.NDArray[np.int64]

LABELS = ("question", "answer", "passage", "context", "problem", "solution", "q", "a")


class SearchSettings(Section):
    """What of benchmarks is looked for.

    Args:
        fields: Of a record, whose strings are looked for; none named: all.
        gram_words: Words of an n-gram; 13 as in arXiv 2005.14165, appendix C.
        short_words: A passage with fewer words than an n-gram, but at least so many, is looked for as a whole …
        short_bytes: … if its words have at least so many bytes of UTF-8. What is shorter is too common to prove
            anything.
        common: What more than so many passages or items have are a benchmark's own phrases; they are not looked for.
        labels: At the beginning of a line and before a colon these are no part of the text.
    """

    fields: tuple[str, ...] = ()
    gram_words: int = Field(default=13, ge=2, le=MOST_WORDS)
    short_words: int = Field(default=6, ge=1, le=MOST_WORDS)
    short_bytes: int = Field(default=20, ge=0)
    common: int = Field(default=100, ge=1)
    labels: tuple[str, ...] = LABELS

    @model_validator(mode="after")
    def _short_is_shorter(self) -> Self:
        if self.short_words > self.gram_words:
            raise ValueError(f"short passages have {self.short_words} words or more, but n-grams {self.gram_words}")
        return self


class Search(Section):
    """What is looked for in documents."""

    benchmarks: tuple[HashedFile, ...]
    settings: SearchSettings = SearchSettings()


@dataclass(frozen=True, eq=False)
class Lists:
    """For each of N things a list of numbers: that of thing i is `values[offsets[i] : offsets[i + 1]]`."""

    offsets: Rows
    values: Rows

    @classmethod
    def of_pairs(cls, things: Rows, values: Rows, count: int) -> Self:
        """From pairs of a thing and a number, which may come more than once; numbers rise."""
        order = np.lexsort((values, things))
        things, values = things[order], values[order]
        new = np.ones(len(things), dtype=bool)
        new[1:] = (things[1:] != things[:-1]) | (values[1:] != values[:-1])
        return cls(np.searchsorted(things[new], np.arange(count + 1)), values[new])

    @property
    def sizes(self) -> Rows:
        return np.diff(self.offsets)

    def of(self, things: Rows) -> tuple[Rows, Rows]:
        """All numbers of these things, one list after another; and before them, whose place in `things` each is of."""
        sizes = self.sizes[things]
        owners = np.repeat(np.arange(len(things)), sizes)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return owners, self.values[self.offsets[things][owners] + within]


@dataclass(frozen=True, eq=False)
class Items:
    """Items of benchmarks, numbered over all of them.

    Args:
        names: Of benchmarks.
        benchmarks, records: Of each item, the number of its benchmark, and that of its record from 1.
        index: The n-grams of all passages.
        active: Which of them are looked for.
        passages: Of n-grams, where they are looked for; only these have an n-gram that is.
        items: Of passages.
        sizes: Of passages, how many n-grams are looked for.
        short: Which passages are short.
        shorts: Of items that have nothing but short passages to look for, how many; 0 for others.
    """

    names: tuple[str, ...]
    benchmarks: Rows
    records: Rows
    index: GramIndex
    active: npt.NDArray[np.bool_]
    passages: Lists
    items: Lists
    sizes: Rows
    short: npt.NDArray[np.bool_]
    shorts: Rows

    @functools.cached_property
    def searched(self) -> npt.NDArray[np.bool_]:
        """Which items have anything that can be looked for."""
        searched = np.zeros(len(self.records), dtype=bool)
        searched[self.items.of(np.flatnonzero(self.sizes))[1]] = True
        return searched


def load_items(search: Search) -> Items:
    """Read benchmarks, once in a process; takes about 200 bytes a word.

    Raises:
        DataError: A file is missing or damaged, or none of its records has anything that can be looked for.
        UsageError: A field is in none of the records, or a file has none of the fields.
    """
    return _load(search.model_dump_json())


@once(most=2)
def _load(search_json: str) -> Items:
    search = Search.model_validate_json(search_json)
    settings = search.settings
    label = re.compile(rf"^[^\S\n]*(?:{'|'.join(map(re.escape, settings.labels))}):", re.IGNORECASE | re.MULTILINE)
    known: dict[str, int] = {}
    benchmarks, records, pairs = list[int](), list[int](), list[tuple[int, int]]()
    seen: set[str] = set()
    for number, benchmark in enumerate(search.benchmarks):
        fields: set[str] = set()
        for record, found in enumerate(read_records(benchmark.path), 1):
            fields |= found.fields.keys()
            wanted = [found.fields.get(name) for name in settings.fields] or [found.fields]
            for text in _strings(wanted):
                stripped = label.sub("", text) if settings.labels else text
                pairs.append((known.setdefault(stripped, len(known)), len(records)))
            benchmarks.append(number)
            records.append(record)
        if settings.fields and not fields & set(settings.fields):
            raise UsageError(
                f"{benchmark.name} has none of the fields {', '.join(settings.fields)}",
                f"its records have {', '.join(sorted(fields))}",
            )
        seen |= fields
    if missing := [name for name in settings.fields if name not in seen]:
        raise UsageError(f"no benchmark has a field {missing[0]}", f"they have {', '.join(sorted(seen))}")
    owners, numbers = np.array(benchmarks, dtype=np.int64), np.array(records, dtype=np.int64)
    items = _items(search, owners, numbers, list(known), np.array(pairs, dtype=np.int64).reshape(-1, 2))
    for number, benchmark in enumerate(search.benchmarks):
        if not items.searched[items.benchmarks == number].any():
            raise DataError(
                f"no item of {benchmark.name} is long enough to be looked for", "lower short_words and short_bytes"
            )
    return items


def _items(search: Search, benchmarks: Rows, records: Rows, texts: Sequence[str], pairs: Rows) -> Items:
    settings = search.settings
    index = GramIndex(
        pa.array(texts, pa.string()), settings.gram_words, settings.short_words, settings.short_bytes
    )  # fmt: skip
    items = Lists.of_pairs(pairs[:, 0], pairs[:, 1], len(texts))
    own = items.sizes > settings.common  # such as a prompt that all items have
    owners = np.repeat(np.arange(len(texts)), index.sizes)
    chosen = ~own[owners]
    passages = Lists.of_pairs(index.members[chosen].astype(np.int64), owners[chosen], index.count)
    active = (passages.sizes > 0) & (passages.sizes <= settings.common)
    chosen &= active[index.members]
    passages = Lists.of_pairs(index.members[chosen].astype(np.int64), owners[chosen], index.count)
    sizes = np.bincount(owners[chosen], minlength=len(texts))
    short = np.zeros(len(texts), dtype=bool)
    short[owners] = index.lengths[index.members] < settings.gram_words
    kinds = [
        np.bincount(items.of(np.flatnonzero((sizes > 0) & kind))[1], minlength=len(records)) for kind in (short, ~short)
    ]
    names = tuple(benchmark.name for benchmark in search.benchmarks)
    shorts = np.where(kinds[1] > 0, 0, kinds[0])
    return Items(names, benchmarks, records, index, active, passages, items, sizes, short, shorts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
