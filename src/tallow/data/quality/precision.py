"""What a threshold on a probability would do: precision and recall on examples that are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Point:
    """What is at or above a threshold: of that, the share that is positive (None if there is nothing), of the
    positives, the share that is there, and of all, the share that is there."""

    threshold: float
    precision: float | None
    recall: float
    kept: float


@dataclass(frozen=True)
class Report:
    """Of probabilities for known examples.

    Args:
        positives, negatives: How many there are.
        auc: The probability that a positive has a higher one than a negative; equal ones count half.
        points: For some thresholds.
    """

    positives: int
    negatives: int
    auc: float
    points: tuple[Point, ...]

    def markdown(self) -> str:
        lines = ["| threshold | precision | recall | kept |", "|---|---|---|---|"]
        for point in self.points:
            precision = "–" if point.precision is None else f"{point.precision:.3f}"
            lines.append(f"| {point.threshold:.2f} | {precision} | {point.recall:.3f} | {point.kept:.3f} |")
        return "\n".join(lines)


def measure(probabilities: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> Report:
    """The report of probabilities (N) of examples of which some are positive; both kinds are there."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    assert positives
    assert negatives
    points = list[Point]()
    for threshold in THRESHOLDS:
        kept = probabilities >= np.float32(threshold)
        hits, count = int((kept & positive).sum()), int(kept.sum())
        points.append(Point(threshold, hits / count if count else None, hits / positives, count / len(kept)))
    return Report(positives, negatives, _auc(probabilities, positive, positives, negatives), tuple(points))


def _auc(
    probabilities: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_], positives: int, negatives: int
) -> float:
    """By ranks (Mann and Whitney), equal values sharing theirs."""
    _, groups, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[groups]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
