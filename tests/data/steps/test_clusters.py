"""Clusters by buckets are those that all pairs together make, in however many buckets and tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from tests.data.steps.corpora import make_parts

from tallow.data.duplicates.minhash import ID
from tallow.data.steps.clusters import CLUSTER, ROW_BYTES, find_clusters
from tallow.data.work.engines import LocalEngine
from tallow.data.work.step import Part, write_batches
from tallow.data.work.work import Work

Pairs = Sequence[tuple[bytes, bytes]]
Found = dict[bytes, tuple[bytes, int]]
DOCUMENTS = 300


def make_pairs(directory: Path, name: str, pairs: Pairs, tables: int) -> list[Part]:
    found = list[Part]()
    for number in range(tables):
        columns = [pa.array(side, ID) for side in zip(*pairs[number::tables], strict=True)] or [pa.array([], ID)] * 2
        path = directory / f"{name} {number}.arrow"
        batches = pa.table(columns, names=["first", "second"]).to_batches()
        write_batches(batches or [pa.record_batch(columns, names=["first", "second"])], path)
        found.append(Part(path, len(pairs[number::tables])))
    return found


def by_hand(pairs: Pairs) -> Found:
    """The smallest id and the size of the cluster of each document that has one."""
    clusters: dict[bytes, set[bytes]] = {}
    for pair in pairs:
        joined = set[bytes]().union(*(clusters.get(id, {id}) for id in pair))
        clusters.update(dict.fromkeys(joined, joined))
    return {id: (min(cluster), len(cluster)) for id, cluster in clusters.items()}


def graphs(ids: Sequence[bytes]) -> dict[str, Pairs]:
    chance = random.Random(0)

    def draw(count: int) -> Pairs:
        return [(one, other) for one, other in (chance.sample(ids, 2) for _ in range(count))]

    middle = ids[len(ids) // 2]
    return {
        "nothing": [],
        "few": draw(40),
        "many": draw(200),
        "a chain": [*pairwise(ids)],
        "a chain in order": [*pairwise(sorted(ids))],
        "a star around the middle": [(min(id, middle), max(id, middle)) for id in ids if id != middle],
        "twice the same, also the other way round": [(ids[0], ids[1]), (ids[1], ids[0]), (ids[0], ids[1])],
    }


@pytest.mark.parametrize(("tables", "buckets"), [(1, 1), (3, 1), (1, 8), (5, 8)])
def test_clusters_are_those_of_all_pairs(tables: int, buckets: int, tmp_path: Path) -> None:
    work = Work(tmp_path / "work", LocalEngine(1))
    parts, _ = make_parts(work, [[f"text {part} {number}" for number in range(DOCUMENTS // 3)] for part in range(3)])
    ids = [part.read()["id"].to_pylist() for part in parts]
    for name, pairs in graphs([id for some in ids for id in some]).items():
        given = make_pairs(tmp_path, name, pairs, tables)
        beside, counts = find_clusters(work, parts, given, DOCUMENTS * ROW_BYTES // buckets)
        found: Found = {}
        for some, table in zip(ids, [part.read() for part in beside], strict=True):
            rows = zip(some, table[CLUSTER].to_pylist(), table["cluster.size"].to_pylist(), strict=True)
            found |= {id: (cluster, size) for id, cluster, size in rows if cluster is not None}
        assert found == by_hand(pairs), name
        sizes = Counter(size for _, size in found.values())
        assert counts == {f"size {size}": documents // size for size, documents in sizes.items()}, name


def test_a_chain_takes_few_rounds(tmp_path: Path) -> None:
    """Not as many as it is long: what is told goes on by doubling."""
    work = Work(tmp_path / "work", LocalEngine(1))
    parts, _ = make_parts(work, [[f"text {number}" for number in range(2000)]])
    ids = parts[0].read()["id"].to_pylist()
    pairs = make_pairs(tmp_path, "chain", [*pairwise(ids)], 4)
    [beside], counts = find_clusters(work, parts, pairs, 2000 * ROW_BYTES // 32)
    assert beside.read()[CLUSTER].unique().to_pylist() == [min(ids)]
    assert counts == {"size 2000": 1}
    records = [file.read_text() for file in work.directory.glob("*.json")]
    links = sum('clusters:LINK"' in record for record in records) - 4
    assert links % 32 == 0
    assert links // 32 <= (2000).bit_length()
