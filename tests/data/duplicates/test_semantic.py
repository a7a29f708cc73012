from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tallow.data.duplicates.embed import Embedder
from tallow.data.duplicates.semantic import (
    LENGTH,
    VectorSettings,
    as_integers,
    connect_similar,
    fit,
    nearest,
)
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import save_model
from tallow.models.skeletons import new_model
from tallow.tokenizer.tokenizer import Tokenizer

ENCODER = EncoderConfig(
    vocab_size=257, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=64
)
DECODER = DecoderConfig(vocab_size=257, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48)


def blobs(groups: int, each: int, spread: float, size: int = 16) -> np.ndarray:
    """Unit vectors around centers that are far from one another, group after group."""
    chance = np.random.default_rng(7)
    centers = np.linalg.qr(chance.normal(size=(size, size)))[0][:groups]
    vectors = np.repeat(centers, each, axis=0) + spread * chance.normal(size=(groups * each, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def groups_of(vectors: np.ndarray, threshold: float) -> list[set[int]]:
    """Connected by brute force, in exact integers."""
    whole = [[int(x) for x in vector] for vector in vectors]
    groups = [{number} for number in range(len(whole))]
    for one, other in combinations(range(len(whole)), 2):
        product = sum(x * y for x, y in zip(whole[one], whole[other], strict=True))
        lengths = [sum(x * x for x in whole[number]) for number in (one, other)]
        if product > 0 and product**2 >= threshold**2 * lengths[0] * lengths[1]:
            both = groups[one] | groups[other]
            for number in both:
                groups[number] = both
    return groups


@pytest.mark.parametrize("config", [ENCODER, DECODER])
def test_a_vector_is_the_mean_of_hidden_states(tmp_path: Path, tokenizer_directory: Path, config) -> None:
    save_model(new_model(config, seed=1), Tokenizer.load(tokenizer_directory), tmp_path / "model")
    embedder = Embedder(tmp_path / "model")
    vectors, found = embedder.embed(pa.array(["some text", "", "é" * 40, None]), 20)
    assert found.tolist() == [True, False, True, False]
    context = BidirectionalContext if config is ENCODER else SequenceContext
    for row, text in ((0, b"some text"), (2, "é".encode() * 10)):
        ids = torch.tensor([embedder.tokenizer.encode(text.decode())])
        assert ids.shape == (1, len(text))
        with torch.no_grad():
            mean = embedder.model(ids, context.plain(1, len(text)))[0].mean(0)
        assert np.allclose(vectors[row], (mean / mean.norm()).numpy(), atol=1e-6)
    torch.set_num_threads(2)
    try:
        assert np.array_equal(embedder.embed(pa.array(["é" * 40]), 20)[0][0], vectors[2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_integers_keep_cosines_and_products_are_exact() -> None:
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(50, 2048)).astype(np.float32)
    vectors[:, 0] = 200 * chance.normal(size=50)  # as language models have it
    integers = as_integers(vectors, np.zeros(2048))
    assert np.abs(np.sqrt((integers.astype(float) ** 2).sum(1)) - LENGTH).max() < np.sqrt(2048) / 2
    unit = vectors / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    exact = integers.astype(np.int64) @ integers.astype(np.int64).T
    assert np.abs(exact / LENGTH**2 - unit @ unit.T).max() < 1e-3
    assert np.abs(exact).max() < 2**24
    assert np.array_equal(integers.astype(np.float32) @ integers.astype(np.float32).T, exact)
    assert all(np.array_equal(as_integers(vectors[i : i + 1], np.zeros(2048))[0], integers[i]) for i in range(50))


def test_k_means_finds_groups() -> None:
    vectors = blobs(groups=8, each=30, spread=0.05)
    mean, centroids = fit(vectors, 8, VectorSettings(center=False))
    assert not mean.any()
    labels = nearest(as_integers(vectors, mean), centroids).reshape(8, 30)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0].tolist())) == 8
    other = fit(vectors, 8, VectorSettings(center=False, seed=2)).centroids_KD
    assert not np.array_equal(other, centroids)


def test_k_means_has_no_more_clusters_than_vectors() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    centroids = fit(vectors, 10, VectorSettings()).centroids_KD
    assert sorted(centroids.tolist()) == sorted((LENGTH * np.eye(3)).astype(int).tolist())


def test_what_all_have_in_common_is_left_out() -> None:
    vectors = blobs(groups=8, each=30, spread=0.05) + 10
    mean, _ = fit(vectors, 8, VectorSettings())
    assert np.allclose(mean, vectors.mean(0))
    one, other = (as_integers(vectors, middle).astype(float) / LENGTH for middle in (np.zeros(16), mean))
    assert (one @ one.T).min() > 0.9
    assert (other @ other.T).min() < 0


@pytest.mark.parametrize("keep", ["id", "far", "near"])
def test_similar_vectors_are_connected(monkeypatch: pytest.MonkeyPatch, keep) -> None:
    vectors = as_integers(blobs(groups=6, each=12, spread=0.09), np.zeros(16))
    vectors = vectors[np.random.default_rng(1).permutation(len(vectors))]
    vectors[5] = 0
    expected = groups_of(vectors, 0.93)
    centroid = vectors[0]
    cosines = [vector @ centroid.astype(float) / max(1, np.linalg.norm(vector.astype(float))) for vector in vectors]
    found = {}
    for block in (7, 1024):
        monkeypatch.setattr("tallow.data.duplicates.semantic.BLOCK", block)
        found[block] = connect_similar(vectors, centroid, VectorSettings(threshold=0.93, keep=keep))
    assert all(np.array_equal(*columns) for columns in zip(*found.values(), strict=True))
    rows, survivors, sizes, similarities = found[7]
    assert rows.tolist() == [number for number, group in enumerate(expected) if len(group) > 1]
    assert 10 < len(rows) < len(vectors) - 5
    best = {
        "id": min,
        "far": lambda group: min(group, key=lambda number: (cosines[number], number)),
        "near": lambda group: min(group, key=lambda number: (-cosines[number], number)),
    }[keep]
    assert survivors.tolist() == [best(expected[row]) for row in rows]
    assert sizes.tolist() == [len(expected[row]) for row in rows]
    assert similarities[rows == survivors] == pytest.approx(1)
    assert similarities.min() > 0


def test_nothing_is_like_nothing() -> None:
    found = connect_similar(np.zeros((3, 4), dtype=np.int16), np.zeros(4, dtype=np.int16), VectorSettings())
    assert len(found.rows) == 0
    found = connect_similar(np.zeros((0, 4), dtype=np.int16), np.zeros(4, dtype=np.int16), VectorSettings())
    assert len(found.rows) == 0
