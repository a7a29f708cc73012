"""Documents that say nearly the same, by vectors of a model (SemDeDup; Abbas et al. 2023, arXiv 2303.09540).

Vectors are clustered by k-means, and within a cluster those whose cosine is at least a threshold are connected; of each
connected group one document survives. (The paper drops whatever is like one that it keeps; what is connected does not
depend on an order.)

Where vectors are compared, they are integers of 13 bits. All their products and sums are below 2^24, so `float32` has
them exactly, in whatever order and blocks a library adds them up: results depend on neither parts nor processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tallow.kernels.text.minhash import connect
from tallow.models.setting import ModelPath
from tallow.recipe import Section

LENGTH = 4000
"""Of an integer vector, about: with up to 36,000 entries it is less than 4,096, so no product of two exceeds 2^24."""

FEW = 64
"""Documents that are too few for their mean to say what all have in common."""

BLOCK = 1024
"""Vectors that are compared with as many others at a time."""

Vectors = npt.NDArray[np.int16]
Floats = npt.NDArray[np.floating]
Number = TypeVar("Number", bound=np.generic)
Rows = npt.NDArray[np.int64]


class VectorSettings(Section):
    """Which vectors are alike.

    Args:
        threshold: Cosine of two vectors from which on their documents are duplicates.
        center: Subtract the mean of all vectors first: those of language models have most of their length in common.
        clusters: Of k-means; None: the root of the number of documents.
        iterations: Of k-means, at most.
        sample: Documents that clusters are made by, about; the others are put to the nearest one.
        seed: Of the first centroids.
        keep: Which document of a group survives: the one with the smallest id, or the farthest from or the nearest to
            the centroid.
    """

    threshold: float = Field(default=0.9, gt=0, le=1)
    center: bool = True
    clusters: int | None = Field(default=None, ge=1)
    iterations: int = Field(default=10, ge=0)
    sample: int = Field(default=50_000, ge=1)
    seed: int = Field(default=1, ge=0)
    keep: Literal["id", "far", "near"] = "id"


class SemanticSettings(VectorSettings):
    """Which documents are semantic duplicates.

    Args:
        model: A model directory or .gguf file, or a name in the local store: an encoder, or a decoder, whose hidden
            states say what the tokens so far are about.
        max_tokens: Of a document so many tokens are looked at.
    """

    model: ModelPath
    max_tokens: int = Field(default=256, ge=1)


class Centroids(NamedTuple):
    """What is subtracted from vectors before they become integers, and the centroids of these."""

    mean_D: npt.NDArray[np.float64]
    centroids_KD: Vectors


class Groups(NamedTuple):
    """Documents of a cluster that are connected with others.

    Args:
        rows: Their numbers.
        survivors: For each the number of the one that survives.
        sizes: Documents of its group.
        similarities: Its cosine with the survivor.
    """

    rows: Rows
    survivors: Rows
    sizes: Rows
    similarities: npt.NDArray[np.float64]


def as_integers(vectors_ND: Floats, mean_D: npt.NDArray[np.float64]) -> Vectors:
    """Vectors without a mean, of length `LENGTH`, rounded; what is no longer than the mean stays 0."""
    integers_ND = np.empty(vectors_ND.shape, dtype=np.int16)
    for begin, block_BD in _blocks(vectors_ND):
        centered_BD = block_BD.astype(np.float64) - mean_D
        lengths_B = np.sqrt((centered_BD * centered_BD).sum(axis=1))
        scale_B = np.divide(LENGTH, lengths_B, out=np.zeros_like(lengths_B), where=lengths_B > 0)
        integers_ND[begin : begin + len(block_BD)] = np.rint(centered_BD * scale_B[:, None])
    return integers_ND


def fit(vectors_ND: Floats, clusters: int, settings: VectorSettings) -> Centroids:
    """Centroids of some vectors, by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd's iterations on the sphere.

    There are no more than different vectors. The order of the vectors matters.
    """
    mean_D = np.zeros(vectors_ND.shape[1])
    if settings.center and len(vectors_ND) >= FEW:
        mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    integers_ND = as_integers(vectors_ND, mean_D)
    centroids_KD = _spread(integers_ND, clusters, settings.seed)
    labels_N = nearest(integers_ND, centroids_KD)
    for _ in range(settings.iterations):
        order = np.argsort(labels_N, kind="stable")
        bounds = np.searchsorted(labels_N[order], np.arange(len(centroids_KD) + 1))
        for cluster, (begin, end) in enumerate(pairwise(bounds)):
            if begin < end:
                sum_D = integers_ND[order[begin:end]].sum(axis=0, dtype=np.int64)
                if sum_D.any():
                    centroids_KD[cluster] = as_integers(sum_D[None].astype(np.float64), np.zeros_like(mean_D))[0]
        before_N, labels_N = labels_N, nearest(integers_ND, centroids_KD)
        if np.array_equal(labels_N, before_N):
            break
    return Centroids(mean_D, centroids_KD)


def nearest(vectors_ND: Vectors, centroids_KD: Vectors) -> Rows:
    """For each vector the centroid with the greatest product, the first of several."""
    centroids_DK = centroids_KD.astype(np.float32).T
    found = [(block_BD.astype(np.float32) @ centroids_DK).argmax(axis=1) for _, block_BD in _blocks(vectors_ND)]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def connect_similar(vectors_ND: Vectors, centroid_D: Vectors, settings: VectorSettings) -> Groups:
    """The documents of a cluster that are connected, given in the order of their ids.

    Takes the memory of the vectors and of a block, whatever is similar.
    """
    lengths_N = _lengths(vectors_ND)
    roots_N = np.arange(len(vectors_ND))
    for first, one_BD in _blocks(vectors_ND):
        one_BD = one_BD.astype(np.float32)
        for second, other_CD in _blocks(vectors_ND[first:]):
            products_BC = one_BD @ other_CD.astype(np.float32).T
            lengths_BC = lengths_N[first : first + len(one_BD), None] * lengths_N[first + second :][: len(other_CD)]
            similar = np.nonzero((products_BC >= settings.threshold * lengths_BC) & (lengths_BC > 0))
            firsts, seconds = similar[0] + first, similar[1] + first + second
            roots_N = connect(np.append(roots_N, firsts), np.append(np.arange(len(roots_N)), seconds), len(roots_N))
    sizes_N = np.bincount(roots_N, minlength=len(roots_N))[roots_N]
    rows = np.flatnonzero(sizes_N > 1)
    survivors_N = roots_N
    if settings.keep != "id" and len(rows):
        products_N = vectors_ND.astype(np.int64) @ centroid_D.astype(np.int64)
        nearness_N = products_N / np.maximum(lengths_N, 1)
        order = np.lexsort((np.arange(len(roots_N)), -nearness_N if settings.keep == "near" else nearness_N, roots_N))
        starts = np.flatnonzero(np.append(True, roots_N[order][1:] != roots_N[order][:-1]))
        best = np.empty(len(roots_N), dtype=np.int64)
        best[roots_N[order[starts]]] = order[starts]
        survivors_N = best[roots_N]
    survivors = survivors_N[rows]
    products = (vectors_ND[rows].astype(np.int64) * vectors_ND[survivors]).sum(axis=1)
    return Groups(rows, survivors, sizes_N[rows], products / (lengths_N[rows] * lengths_N[survivors]))


def _spread(integers_ND: Vectors, clusters: int, seed: int) -> Vectors:
    """First centroids: each is drawn with a chance that grows with its distance from those before it.

    Numbers are drawn by SHAKE-256, and distances and their sums are integers.
    """
    drawn = hashlib.shake_256(f"tallow k-means {seed}".encode()).digest(8 * clusters)
    numbers = [int.from_bytes(drawn[at : at + 8], "little") for at in range(0, len(drawn), 8)]
    floats_ND = integers_ND.astype(np.float32)
    chosen = [numbers[0] * len(integers_ND) >> 64]
    distances_N = np.full(len(integers_ND), np.iinfo(np.int64).max)
    for number in numbers[1:]:
        products_N = (floats_ND @ floats_ND[chosen[-1]]).astype(np.int64)
        distances_N = np.minimum(distances_N, np.maximum(LENGTH * LENGTH - products_N, 0))
        distances_N[(integers_ND == integers_ND[chosen[-1]]).all(axis=1)] = (
            0  # rounded they are a little longer or shorter
        )
        sums_N = distances_N.cumsum()
        if not sums_N[-1]:
            break
        chosen.append(int(np.searchsorted(sums_N, number * int(sums_N[-1]) >> 64, side="right")))
    return integers_ND[chosen].copy()


def _lengths(vectors_ND: Vectors) -> npt.NDArray[np.float64]:
    squares = [(block_BD.astype(np.int64) ** 2).sum(axis=1) for _, block_BD in _blocks(vectors_ND)]
    return np.sqrt(np.concatenate([np.empty(0, dtype=np.int64), *squares]))


def _blocks(vectors_ND: npt.NDArray[Number]) -> Iterator[tuple[int, npt.NDArray[Number]]]:
    for begin in range(0, len(vectors_ND), BLOCK):
        yield begin, vectors_ND[begin : begin + BLOCK]
