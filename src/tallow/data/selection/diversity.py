"""Documents as points, clusters of them, and how many of each cluster are kept.

A text's hashed n-grams are projected on random directions (Johnson and Lindenstrauss 1984; with signs as in Achlioptas
2003). Points are clustered by k-means with a careful start (k-means++, of several tries the best; Arthur and
Vassilvitskii 2007), and clusters are kept in equal shares as far as they go, so that what is frequent does not crowd
out the rest (as in arXiv 2308.12284). All is done in whole numbers, so nothing depends on the order of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.data.permutation import mix
from tallow.kernels.text.hashed_grams import Grams, hashed_grams
from tallow.recipe import Section

DIMENSIONS = 64
"""Signs of a bucket of n-grams are the bits of its hash."""

Points = npt.NDArray[np.float64]
"""N × `DIMENSIONS` whole numbers from -127 to 127, so that their products are exact."""

AT_ONCE = 2**15
FRACTION = 2**20
TRIES = 4
"""Points of which the best becomes the next centre."""


class DiversityConfig(Section):
    """How documents are clustered.

    Args:
        clusters: How many; there may be fewer.
        sample: Documents that clusters are found with.
        sample_bytes: Of a document's beginning that are looked at.
        iterations: Of k-means, at most.
        seed: Of the sample, of the start, and of which documents of a cluster are kept.
    """

    clusters: int = Field(default=64, ge=1, le=4096)
    sample: int = Field(default=10_000, ge=1)
    sample_bytes: int = Field(default=20_000, ge=1)
    iterations: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)

    def grams(self) -> Grams:
        return Grams(self.sample_bytes, 1, 1, 0, 20)


def points_of(texts: pa.StringArray, config: DiversityConfig) -> Points:
    """The points of N texts; that of one without words is 0."""
    offsets, buckets, values = hashed_grams(texts, config.grams())
    points = np.zeros((len(texts), DIMENSIONS))
    weights = np.rint(values.astype(np.float64) * FRACTION).astype(np.int64)
    bits = np.arange(DIMENSIONS, dtype=np.uint64)
    begin = 0
    while begin < len(texts):
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + AT_ONCE, side="right")) - 1)
        here = slice(int(offsets[begin]), int(offsets[end]))
        hashes = mix(buckets[here].astype(np.uint64))
        signs = ((hashes[:, None] >> bits) & np.uint64(1)).astype(np.int64) * 2 - 1
        sums = np.concatenate(
            [np.zeros((1, DIMENSIONS), dtype=np.int64), np.cumsum(signs * weights[here, None], axis=0)]
        )
        inner = offsets[begin : end + 1] - offsets[begin]
        points[begin:end] = sums[inner[1:]] - sums[inner[:-1]]
        begin = end
    return np.clip(np.rint(points * (32 / FRACTION)), -127, 127)


def find_centroids(points: Points, config: DiversityConfig) -> Points:
    """Centres of clusters of some points, whose order matters."""
    draw = np.random.Generator(np.random.PCG64(config.seed))
    centroids = points[draw.integers(len(points))][None]
    nearest = _distances(points, centroids)[:, 0]
    while len(centroids) < config.clusters and nearest.sum() > 0:
        ends = np.cumsum(nearest)
        tried = points[np.searchsorted(ends, draw.integers(int(ends[-1]), size=TRIES), side="right")]
        left = np.minimum(nearest[:, None], _distances(points, tried))
        best = int(np.argmin(left.sum(axis=0)))
        centroids, nearest = np.concatenate([centroids, tried[best][None]]), left[:, best]
    for _ in range(config.iterations):
        owners = nearest_centroids(points, centroids)
        counts = np.bincount(owners, minlength=len(centroids))
        sums = np.zeros_like(centroids)
        np.add.at(sums, owners, points)
        means = np.floor((2 * sums + counts[:, None]) / np.maximum(2 * counts[:, None], 1))
        moved = np.where(counts[:, None] > 0, means, centroids)
        if (moved == centroids).all():
            break
        centroids = moved
    return centroids


def nearest_centroids(points: Points, centroids: Points) -> npt.NDArray[np.int32]:
    """Of each point the number of the nearest, of several the first."""
    return np.argmin(_distances(points, centroids), axis=1).astype(np.int32)


def _distances(points: Points, centroids: Points) -> Points:
    """Squared, and exact: all numbers are whole and below 2^53."""
    return (points**2).sum(axis=1)[:, None] - 2 * (points @ centroids.T) + (centroids**2).sum(axis=1)


def priorities(ids: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Random numbers of documents with these ids (N × 2 words)."""
    return mix(mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + ids[:, 0]) ^ ids[:, 1])


def quotas(sizes: Mapping[int, int], budget: int) -> dict[int, int]:
    """How many of each cluster are kept: the same number of all, but of those that have fewer all that they have."""
    result = dict.fromkeys(sizes, 0)
    left, open_clusters = min(budget, sum(sizes.values())), sorted(sizes, key=lambda cluster: (sizes[cluster], cluster))
    while open_clusters:
        cluster = open_clusters[0]
        share = left // len(open_clusters)
        if sizes[cluster] > share:
            break
        result[cluster] = sizes[cluster]
        left -= sizes[cluster]
        open_clusters.pop(0)
    for place, cluster in enumerate(sorted(open_clusters)):
        result[cluster] = left // len(open_clusters) + (place < left % len(open_clusters))
    return result
