"""Documents that say nearly the same, found by steps on parts (duplicates/semantic.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates.semantic import (
    Centroids,
    SemanticSettings,
    VectorSettings,
    as_integers,
    connect_similar,
    fit,
    nearest,
)
from tallow.data.steps.deal import answered, by_row, numbers_of
from tallow.data.steps.tables import VERDICTS, kept, texts_of, words
from tallow.data.work.step import Made, Part, Pieces, Step, beside, pieces
from tallow.data.work.work import Work
from tallow.models.store import resolve
from tallow.recipe import Section

SURVIVORS = pa.schema([("survivor", pa.binary(16)), ("size", pa.int64()), ("similarity", pa.float64())])
"""Beside a part: of each document that is like others the one that survives, and the cosine with it."""

IDS = (("word_0", pa.uint64()), ("word_1", pa.uint64()))
ROWS = pa.schema([("row", pa.int32()), *IDS, ("size", pa.int64()), ("similarity", pa.float64())])
EMBEDDED = "embedded"


class EmbedConfig(Section):
    """Where the model is, and its hash."""

    incidental = frozenset(("path",))

    path: Path
    model: str
    max_tokens: int


class SampleConfig(Section):
    """Of documents whose id is below `bound`, in its first 64 bits, clusters are made."""

    bound: int


class FitConfig(Section):
    settings: VectorSettings
    clusters: int


class AssignConfig(Section):
    pass


class CompareConfig(Section):
    settings: VectorSettings
    cluster: int


class DropConfig(Section):
    """What is said of those that do not survive."""

    reason: str


def semantic_duplicates(
    work: Work, parts: Sequence[Part], verdicts: Sequence[Part], settings: SemanticSettings
) -> list[Part]:
    """Which of the documents that are kept so far say nearly the same: `SURVIVORS`, beside each part.

    No process sees more vectors than those of a part, of `settings.sample` documents, or of a cluster.

    Args:
        parts: The documents.
        verdicts: Beside them.
        settings: How they are found.

    Raises:
        DataError: There is no such model, or it is broken.
    """
    model = work.inputs.model(str(settings.model), lambda: resolve(settings.model).absolute())
    embed = EmbedConfig(path=model.path, model=model.sha256, max_tokens=settings.max_tokens)
    embedded = [made for [made] in work.each(EMBED, [(embed, inputs) for inputs in beside(parts, verdicts)])]
    count = sum(int(part.counts[EMBEDDED]) for part in embedded)
    sample = SampleConfig(bound=min(2**64, settings.sample * 2**64 // max(1, count)))
    samples = [made for [made] in work.each(SAMPLE, [(sample, [part]) for part in embedded])]
    alike = VectorSettings(**{name: getattr(settings, name) for name in VectorSettings.model_fields})
    wanted = FitConfig(settings=alike, clusters=settings.clusters or max(1, math.isqrt(count)))
    [[centroids]] = work.each(FIT, [(wanted, samples)])
    assigned = [made for [made] in work.each(ASSIGN, [(AssignConfig(), [part, centroids]) for part in embedded])]
    clusters = [
        (CompareConfig(settings=alike, cluster=cluster), [centroids, Pieces(assigned, cluster)])
        for cluster in range(max(1, centroids.rows - 1))
    ]
    compared = [made for [made] in work.each(COMPARE, clusters)]
    told = [(AssignConfig(), [verdict, Pieces(compared, number)]) for number, verdict in enumerate(verdicts)]
    return [made for [made] in work.each(TELL, told)]


def drop_but_survivors(
    work: Work, parts: Sequence[Part], verdicts: Sequence[Part], survivors: Sequence[Part], reason: str
) -> list[Part]:
    """New verdicts: what is kept so far and has a survivor other than itself is dropped for this reason."""
    given = [(DropConfig(reason=reason), inputs) for inputs in beside(parts, verdicts, survivors)]
    return [made for [made] in work.each(DROP, given)]


def _embed(config: EmbedConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Rows, ids and vectors of the documents that have any token."""
    from tallow.data.duplicates.embed import load_embedder  # PyTorch, which takes seconds: the other steps need none

    documents, verdicts = tables
    rows = np.flatnonzero(kept(verdicts))
    documents = documents.take(rows)
    embedder = load_embedder(config.path, config.model)
    vectors, found = embedder.embed(texts_of(documents), config.max_tokens)
    ids = words(documents.column("id"))[found]
    table = _with_vectors([rows[found].astype(np.int32), *ids.T], vectors[found])
    yield Made(table, {EMBEDDED: int(found.sum())})


def _sample(config: SampleConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [embedded] = tables
    if config.bound < 2**64:
        first = embedded.column("word_0").to_numpy()
        embedded = embedded.filter(pa.array(first < np.uint64(config.bound)))
    yield Made(embedded)


def _fit(config: FitConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The mean, and below it the centroids."""
    together = pa.concat_tables(tables)
    order = np.lexsort((together.column("word_1").to_numpy(), together.column("word_0").to_numpy()))
    vectors = _floats(together)
    if not len(vectors):
        yield Made(pa.table({"vector": _lists(np.zeros((1, vectors.shape[1])))}))
        return
    mean, centroids = fit(vectors[order], config.clusters, config.settings)
    yield Made(pa.table({"vector": _lists(np.concatenate([mean[None], centroids.astype(np.float64)]))}))


def _assign(_: AssignConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch for each cluster, of rows, ids and vectors of integers."""
    embedded, fitted = tables
    mean, centroids = _centroids(fitted)
    vectors = as_integers(_floats(embedded), mean)
    labels = nearest(vectors, centroids) if len(centroids) else np.zeros(len(vectors), dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    columns = [embedded.column(i).to_numpy()[order] for i in range(3)]
    starts = np.searchsorted(labels[order], np.arange(max(1, len(centroids)))).tolist()
    yield Made(pieces(_with_vectors(columns, vectors[order]), starts))


def _compare(config: CompareConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """A batch of `ROWS` for each part."""
    fitted, *members = tables
    together = pa.concat_tables(members)
    rows, high, low = (together.column(i).to_numpy() for i in range(3))
    order = np.lexsort((low, high))
    centroids = _centroids(fitted).centroids_KD
    vectors = _vectors(together)[order].astype(np.int16, copy=False)
    centroid = centroids[config.cluster] if len(centroids) else np.zeros(vectors.shape[1], dtype=np.int16)
    found = connect_similar(vectors, centroid, config.settings)
    here, survivors = order[found.rows], order[found.survivors]
    table = pa.table([rows[here], high[survivors], low[survivors], found.sizes, found.similarities], schema=ROWS)
    yield Made(answered(table, numbers_of(members)[here], len(members)))


def _tell(_: AssignConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    verdicts, *answers = tables
    together = pa.concat_tables(answers)
    names = np.stack([together.column(f"word_{i}").to_numpy() for i in range(2)], axis=1).astype(">u8").tobytes()
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(together), [None, pa.py_buffer(names)])
    found = {"row": together.column("row"), "survivor": ids}
    found |= {name: together.column(name) for name in ("size", "similarity")}
    yield Made(by_row(pa.table(found), verdicts.num_rows).cast(SURVIVORS), {"grouped": len(together)})


def _drop(config: DropConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, verdicts, survivors = tables
    other = pc.call_function("not_equal", [documents.column("id"), survivors.column("survivor")])
    gone = kept(verdicts) & pc.call_function("coalesce", [other, pa.scalar(False)]).to_numpy()
    reasons = pc.call_function("if_else", [pa.array(gone), pa.scalar(config.reason), verdicts.column("dropped_by")])
    yield Made(pa.table([reasons], schema=VERDICTS), {config.reason: int(gone.sum())})


def _with_vectors(columns: Sequence[npt.NDArray[np.generic]], vectors: npt.NDArray[np.generic]) -> pa.Table:
    names = ["row", "word_0", "word_1", "vector"]
    return pa.table([*(pa.array(column) for column in columns), _lists(vectors)], names=names)


def _lists(vectors: npt.NDArray[np.generic]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def _vectors(table: pa.Table) -> npt.NDArray[np.generic]:
    """N × D of the column `vector`."""
    column = table.column("vector")
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(flat).reshape(-1, column.type.list_size)


def _floats(table: pa.Table) -> npt.NDArray[np.float32]:
    return _vectors(table).astype(np.float32, copy=False)


def _centroids(fitted: pa.Table) -> Centroids:
    vectors = _vectors(fitted).astype(np.float64, copy=False)
    return Centroids(vectors[0], vectors[1:].astype(np.int16))


EMBED = Step(f"{__name__}:EMBED", 1, EmbedConfig, _embed)
SAMPLE = Step(f"{__name__}:SAMPLE", 1, SampleConfig, _sample)
FIT = Step(f"{__name__}:FIT", 1, FitConfig, _fit)
ASSIGN = Step(f"{__name__}:ASSIGN", 1, AssignConfig, _assign)
COMPARE = Step(f"{__name__}:COMPARE", 1, CompareConfig, _compare)
TELL = Step(f"{__name__}:TELL", 1, AssignConfig, _tell)
DROP = Step(f"{__name__}:DROP", 1, DropConfig, _drop)
