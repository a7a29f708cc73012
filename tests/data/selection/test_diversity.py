"""What is frequent does not crowd out the rest."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.data.selection.test_selection import run

from tallow.data.selection.diversity import DiversityConfig, find_centroids, nearest_centroids, points_of, quotas
from tallow.data.steps.diversity import keep_diverse
from tallow.data.work.step import Part
from tallow.data.work.work import Work

TOPICS = [[f"{name}{number}" for number in range(30)] for name in ("sea", "barn", "star", "coin")]


def texts_of_topics(counts: list[int]) -> list[str]:
    chance = random.Random(2)
    texts = [
        " ".join([topic[0][:-1], *chance.choices(topic, k=200)])
        for topic, n in zip(TOPICS, counts, strict=True)
        for _ in range(n)
    ]
    chance.shuffle(texts)
    return texts


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_quotas_are_even_and_use_up_the_budget(sizes: list[int], budget: int) -> None:
    found = quotas(dict(enumerate(sizes)), budget)
    assert sum(found.values()) == min(budget, sum(sizes))
    assert all(found[cluster] <= size for cluster, size in enumerate(sizes))
    cut = [found[cluster] for cluster, size in enumerate(sizes) if found[cluster] < size]
    if cut:  # none that was cut has less than another, but for one
        assert max(found.values()) <= min(cut) + 1


def test_points_do_not_depend_on_other_texts() -> None:
    config = DiversityConfig()
    texts = [*texts_of_topics([20, 20, 5, 5]), "", " ".join(f"w{number}" for number in range(9000))]
    whole = points_of(pa.array(texts), config)
    single = np.concatenate([points_of(pa.array([text]), config) for text in texts])
    assert (whole == single).all()
    assert (whole == np.rint(whole)).all()
    assert not whole[-2].any()
    same, other = whole[:50] @ whole[0], np.array([text.split()[0] == texts[0].split()[0] for text in texts[:50]])
    assert same[other].min() > same[~other].max()


def test_clusters_are_the_topics() -> None:
    texts = texts_of_topics([60, 20, 20, 20])
    config = DiversityConfig(clusters=4)
    points = points_of(pa.array(texts), config)
    owners = nearest_centroids(points, find_centroids(points, config)).tolist()
    assert len({(owner, text.split()[0]) for owner, text in zip(owners, texts, strict=True)}) == 4


def test_all_topics_stay(tmp_path: Path) -> None:
    texts = [*texts_of_topics([150, 30, 12, 8]), "?"]
    config = DiversityConfig(clusters=4, sample=120)

    def choose(work: Work, parts: list[Part], verdicts: list[Part]) -> list[Part]:
        return keep_diverse(work, parts, verdicts, 0.3, "frequent", config, part_bytes=32 * size)

    size = 1000
    kept = run(tmp_path / "whole", texts, [], choose)
    assert Counter(text.split()[0] for text in kept) == {"sea": 20, "barn": 20, "star": 12, "coin": 8}
    size = 31
    assert run(tmp_path / "parts", texts, [0, 9, 80], choose) == kept
    assert run(tmp_path / "processes", texts, [99], choose, processes=2) == kept
    assert run(tmp_path / "nothing", ["?", ""], [1], choose) == []
