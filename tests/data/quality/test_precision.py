from __future__ import annotations

import numpy as np
import pytest

from tallow.data.quality.precision import THRESHOLDS, measure


def test_precision_and_recall_at_thresholds() -> None:
    report = measure(np.array([0.9, 0.6, 0.4, 0.7, 0.1], np.float32), np.array([True, True, True, False, False]))
    points = {point.threshold: point for point in report.points}
    assert tuple(points) == THRESHOLDS
    assert (points[0.5].precision, points[0.5].recall, points[0.5].kept) == (2 / 3, 2 / 3, 3 / 5)
    assert (points[0.8].precision, points[0.8].recall) == (1, 1 / 3)
    assert points[0.95].precision is None
    assert points[0.9].recall == 1 / 3  # what is at the threshold is kept
    assert report.auc == pytest.approx(4 / 6)
    assert "| 0.95 | – | 0.000 | 0.000 |" in report.markdown()


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    probabilities, positive = (generator.integers(0, 9, 80) / 8).astype(np.float32), generator.random(80) < 0.3
    pairs = np.sign(probabilities[positive][:, None] - probabilities[~positive])
    assert measure(probabilities, positive).auc == pytest.approx((1 + pairs.mean()) / 2)
