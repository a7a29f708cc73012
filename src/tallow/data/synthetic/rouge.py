"""How alike two texts are: ROUGE-L (Lin, 2004)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
"""A run of letters and digits; of scripts without spaces each character."""


def words(text: str) -> list[str]:
    """What is compared; of English text what the package rouge_score does."""
    return WORD.findall(text.lower())


class Similarity:
    """Finds texts that are too much like one of those before."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._seen: list[tuple[list[str], Counter[str]]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        found = words(text)
        self._seen.append((found, Counter(found)))

    def reaches(self, text: str, threshold: float) -> bool:
        """Whether the F-measure of ROUGE-L with any text before is `threshold` or more."""
        found = words(text)
        if not found:
            return False
        counts = Counter(found)
        masks = _masks(found)
        for other, other_counts in self._seen:
            least = threshold * (len(found) + len(other)) / 2
            if min(len(found), len(other)) < least or (counts & other_counts).total() < least:
                continue  # what they share is in no order longer than that
            if _common(masks, len(found), other) >= least:
                return True
        return False


def rouge_l(text: str, other: str) -> float:
    """F-measure: twice the longest common subsequence of words over the words of both."""
    found, others = words(text), words(other)
    if not found or not others:
        return 0.0
    return 2 * _common(_masks(found), len(found), others) / (len(found) + len(others))


def _masks(found: Sequence[str]) -> dict[str, int]:
    """Places of each word, as bits."""
    masks: dict[str, int] = {}
    for place, word in enumerate(found):
        masks[word] = masks.get(word, 0) | 1 << place
    return masks


def _common(masks: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time (Hyyrö, 2004)."""
    row = all_ones = (1 << length) - 1
    for word in other:
        matches = row & masks.get(word, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return length - row.bit_count()
