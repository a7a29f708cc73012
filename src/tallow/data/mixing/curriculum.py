"""Easy rows first ("Curriculum learning", Bengio et al. 2009): the order of a first epoch."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from tallow.data.permutation import Permutation
from tallow.errors import DataError, UsageError, reading
from tallow.recipe import Section

Scores = npt.NDArray[np.float64]
LENGTH = "length"


class CurriculumConfig(Section):
    """Which rows are easy, and how soon the others may come.

    Each domain has a curriculum of its own, which lasts for its first epoch, or for its part of the run if that is
    shorter; later epochs are in random order. Takes 50 bytes a row, and two microseconds at the start.

    Args:
        by: What makes a document hard: `length` (in tokens), or a column of `scores`. A row is as hard as its tokens'
            documents are on average.
        scores: A parquet file with the columns `id` (of documents) and `by`; what is not in it, or has no value, is as
            hard as the middle one of the others.
        hardest_first: The other way round.
        pacing: How the share of the rows that may come, the easiest ones, rises: in a straight line (`linear`), or
            with the root (`root`, arXiv 1903.09848, section 3.2), so that each new row stays as long among the newest.
        start: That share at the beginning.
        until: When all rows may come: a share of the curriculum's length.
    """

    by: str = LENGTH
    scores: Path | None = None
    hardest_first: bool = False
    pacing: Literal["linear", "root"] = "root"
    start: float = Field(default=0.05, gt=0, le=1)
    until: float = Field(default=0.5, gt=0, le=1)

    def competence(self, time: float) -> float:
        """The share of the rows that may come at a time from 0 to 1."""
        way = min(1.0, time / self.until)
        if self.pacing == "linear":
            return self.start + (1 - self.start) * way
        return math.sqrt(self.start**2 + (1 - self.start**2) * way)


def paced_order(hardness: Scores, config: CurriculumConfig, length: int, seed: int) -> npt.NDArray[np.int64]:
    """An order of all rows in which none comes before it may; of those that may, a random one is next.

    Args:
        hardness: Of N rows. Those that are equal come in random order.
        config: When which rows may come.
        length: Places over which the pacing runs, if that is less than N.
        seed: Names the order.
    """
    count = len(hardness)
    length = min(length, count)
    chance = Permutation(count, seed)(np.arange(count))
    ranked = np.lexsort((chance, -hardness if config.hardest_first else hardness))
    order = np.empty(count, dtype=np.int64)
    waiting: list[tuple[int, int]] = []
    allowed = 0
    drawn = iter(zip(chance[ranked].tolist(), ranked.tolist(), strict=True))
    for place in range(count):
        may = max(place + 1, math.ceil(config.competence(place / length) * count - 1e-9))
        for _ in range(allowed, may):
            heapq.heappush(waiting, next(drawn))
        allowed = max(allowed, may)
        order[place] = heapq.heappop(waiting)[1]
    return order


def document_scores(config: CurriculumConfig, ids: Iterator[str]) -> Scores:
    """The column that makes documents hard, for each of these ids.

    Raises:
        UsageError: No file is named.
        DataError: It is missing or damaged, lacks the columns, or knows none of the documents.
    """
    if config.scores is None:
        raise UsageError(
            f"curriculum.by is {config.by}, but no file has it", "name it in curriculum.scores, or set by to length"
        )
    try:
        with reading(config.scores, "scores"):
            table = pq.read_table(config.scores, columns=["id", config.by])
        names = table.column("id").cast(pa.string())
        values = table.column(config.by).cast(pa.float64()).fill_null(math.nan).to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{config.scores} is not a parquet file with the columns id and {config.by} ({error})", "make it again"
        ) from error
    places = pc.call_function("index_in", [pa.array(ids, pa.string())], pc.SetLookupOptions(names))
    places = places.fill_null(-1).to_numpy()
    if len(names) == 0:
        places = np.full(len(places), -1)
    found = np.append(values, math.nan)[places]
    if np.isnan(found).all():
        raise DataError(f"{config.scores} has no {config.by} of any document of the tokens", "name the file of these")
    return np.where(np.isnan(found), np.nanmedian(found), found)


def lengths(begins: npt.NDArray[np.int64], tokens: int) -> Scores:
    """Of documents that begin at these places among so many tokens."""
    return np.diff(begins, append=tokens).astype(np.float64)
