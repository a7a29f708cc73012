"""Documents that are different from each other are kept: as many of each cluster, as far as they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.selection.diversity import (
    DIMENSIONS,
    DiversityConfig,
    Points,
    find_centroids,
    nearest_centroids,
    points_of,
    priorities,
    quotas,
)
from tallow.data.steps.tables import kept, texts_of, words
from tallow.data.steps.unique import drop_told
from tallow.data.work.step import Made, Part, Pieces, Step, beside, pieces
from tallow.data.work.work import Work
from tallow.recipe import Section

TOGETHER = 64
"""Samples that are joined at a time."""

ROW_BYTES = 32
POINT = pa.list_(pa.int8(), DIMENSIONS)
SAMPLE_SCHEMA = pa.schema(
    [("priority", pa.uint64()), ("high", pa.uint64()), ("low", pa.uint64()), ("point", POINT)]
)  # fmt: skip
DEALT = pa.schema(
    [
        ("cluster", pa.int32()),
        ("priority", pa.uint64()),
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("row", pa.int32()),
    ]
)


class DealConfig(Section):
    """The bucket of each cluster, and the seed of priorities."""

    buckets: tuple[int, ...]
    seed: int


class ChooseConfig(Section):
    """How many of each cluster stay."""

    quotas: tuple[int, ...]


def keep_diverse(
    work: Work,
    parts: Sequence[Part],
    verdicts: Sequence[Part],
    share: float,
    reason: str,
    config: DiversityConfig,
    part_bytes: int,
) -> list[Part]:
    """New verdicts: of the documents that were kept so far a share stays, as many of each cluster as far as they go.

    A process holds 32 bytes of each document of a cluster.

    Args:
        share: Of the documents that were kept so far.
        reason: What drops the others.
        part_bytes: Small clusters are looked at together, up to this size.
    """
    judged = beside(parts, verdicts)
    samples = [made for [made] in work.each(SAMPLE, [(config, inputs) for inputs in judged])]
    while len(samples) > 1:
        groups = [samples[begin : begin + TOGETHER] for begin in range(0, len(samples), TOGETHER)]
        samples = [made for [made] in work.each(JOIN, [(config, group) for group in groups])]
    if not samples or not samples[0].rows:
        return list(verdicts)
    [[centroids]] = work.each(CENTROIDS, [(config, [samples[0]])])
    clusters = [made for [made] in work.each(ASSIGN, [(config, [*inputs, centroids]) for inputs in judged])]
    sizes: Counter[int] = Counter()
    for part in clusters:
        sizes.update({int(cluster): int(size) for cluster, size in part.counts.items()})
    wanted = quotas(sizes, round(share * sizes.total()))
    buckets = _buckets([sizes[cluster] for cluster in range(centroids.rows)], part_bytes)
    deal = DealConfig(buckets=buckets, seed=config.seed)
    dealt = [made for [made] in work.each(DEAL, [(deal, inputs) for inputs in beside(parts, verdicts, clusters)])]
    choose = ChooseConfig(quotas=tuple(wanted.get(cluster, 0) for cluster in range(centroids.rows)))
    places = [(choose, [Pieces(dealt, bucket)]) for bucket in range(max(buckets) + 1)]
    return drop_told(work, verdicts, [made for [made] in work.each(CHOOSE, places)], reason)


def _buckets(sizes: Sequence[int], part_bytes: int) -> tuple[int, ...]:
    """Clusters that follow one another lie in one bucket as long as it has room."""
    found, number, filled = list[int](), 0, 0
    for size in sizes:
        if filled and (filled + size) * ROW_BYTES > part_bytes:
            number, filled = number + 1, 0
        filled += size
        found.append(number)
    return tuple(found)


def _sample(config: DiversityConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, verdicts = tables
    ids = words(documents.column("id"))
    rows = np.flatnonzero(kept(verdicts))
    order = _by_priority(priorities(ids[rows], config.seed), ids[rows])[: config.sample]
    rows = rows[order]
    points = points_of(texts_of(documents.take(pa.array(rows))), config)
    columns = [pa.array(priorities(ids[rows], config.seed)), *_id_columns(ids[rows]), _point_column(points)]
    yield Made(pa.table(columns, schema=SAMPLE_SCHEMA))


def _join(config: DiversityConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    together = pa.concat_tables(tables)
    ids = np.stack([together.column(name).to_numpy() for name in ("high", "low")], axis=1)
    order = _by_priority(together.column("priority").to_numpy(), ids)[: config.sample]
    yield Made(together.take(pa.array(order)))


def _by_priority(numbers: npt.NDArray[np.uint64], ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return np.lexsort((ids[:, 1], ids[:, 0], numbers))


def _id_columns(ids: npt.NDArray[np.uint64]) -> list[pa.Array]:
    return [pa.array(np.ascontiguousarray(word)) for word in ids.T]


def _point_column(points: Points) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(points.astype(np.int8).ravel()), DIMENSIONS).cast(POINT)


def _points(table: pa.Table) -> Points:
    lists = table.column("point").combine_chunks()
    flat = [chunk.flatten().to_numpy() for chunk in (lists.chunks if isinstance(lists, pa.ChunkedArray) else [lists])]
    return np.concatenate(flat).reshape(-1, DIMENSIONS).astype(np.float64)


def _centroids(config: DiversityConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [sample] = tables
    yield Made(pa.table({"point": _point_column(find_centroids(_points(sample), config))}))


def _assign(config: DiversityConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The cluster of each document, and how many that are kept so far each has."""
    documents, verdicts, centroids = tables
    clusters = nearest_centroids(points_of(texts_of(documents), config), _points(centroids))
    sizes = Counter(clusters[kept(verdicts)].tolist())
    yield Made(pa.table({"cluster": clusters}), {str(cluster): sizes[cluster] for cluster in sorted(sizes)})


def _deal(config: DealConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of documents for each bucket."""
    documents, verdicts, clusters = tables
    rows = np.flatnonzero(kept(verdicts))
    own, ids = clusters.column("cluster").to_numpy()[rows], words(documents.column("id"))[rows]
    buckets = np.array(config.buckets)[own]
    order = np.argsort(buckets, kind="stable")
    columns = [
        pa.array(own[order]),
        pa.array(priorities(ids[order], config.seed)),
        *_id_columns(ids[order]),
        pa.array(rows[order].astype(np.int32)),
    ]
    starts = np.searchsorted(buckets[order], np.arange(max(config.buckets) + 1)).tolist()
    yield Made(pieces(pa.table(columns, schema=DEALT), starts))


def _choose(config: ChooseConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch for each part: rows of documents that go."""
    together = pa.concat_tables(tables)
    found = [together.column(name).to_numpy() for name in ("low", "high", "priority", "cluster")]
    order = np.lexsort(found)
    own = found[-1][order]
    ranks = np.arange(len(own)) - np.searchsorted(own, own)
    losers = np.sort(order[ranks >= np.array(config.quotas, dtype=np.int64)[own]])
    part = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    rows = pa.table({"row": together.column("row").to_numpy()[losers].astype(np.int32)})
    starts = np.searchsorted(part[losers], np.arange(len(tables))).tolist()
    yield Made(pieces(rows, starts))


SAMPLE = Step(f"{__name__}:SAMPLE", 1, DiversityConfig, _sample)
JOIN = Step(f"{__name__}:JOIN", 1, DiversityConfig, _join)
CENTROIDS = Step(f"{__name__}:CENTROIDS", 1, DiversityConfig, _centroids)
ASSIGN = Step(f"{__name__}:ASSIGN", 1, DiversityConfig, _assign)
DEAL = Step(f"{__name__}:DEAL", 1, DealConfig, _deal)
CHOOSE = Step(f"{__name__}:CHOOSE", 1, ChooseConfig, _choose)
