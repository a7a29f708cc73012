from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from tallow.data.quality.kneser_ney import USUAL_DISCOUNTS, Estimate, estimate
from tallow.kernels.text.ngrams import BEGIN, END, score_ngrams, word_hashes, word_log_probability

Words = tuple[str, ...]
Probability = Callable[[Words, str], Fraction]


def sentences(count: int, seed: int, vocabulary: int = 12) -> list[str]:
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(vocabulary)]
    weights = [1 / (1 + number) for number in range(vocabulary)]
    return [" ".join(generator.choices(words, weights, k=generator.randint(1, 9))) for _ in range(count)]


def reference(texts: Sequence[str], order: int, discounts: Sequence[Sequence[float]]) -> Probability:
    """Modified Kneser-Ney as the paper has it: by sets of words, in exact fractions, and slowly."""
    lines = [("<s>", *text.split(), "</s>") for text in texts]
    counts = list[dict[Words, int]]()
    for size in range(1, order + 1):
        raw = Counter(line[at : at + size] for line in lines for at in range(len(line) - size + 1))
        before = defaultdict[Words, set[str]](set)
        for line in lines:
            for at in range(1, len(line) - size + 1):
                before[line[at : at + size]].add(line[at - 1])
        counts.append({g: raw[g] if size == order or g[0] == "<s>" else len(before[g]) for g in raw if g != ("<s>",)})
    vocabulary = len(counts[0]) + 1

    def probability(context: Words, word: str) -> Fraction:
        size = len(context) + 1
        lower = probability(context[1:], word) if context else Fraction(1, vocabulary)
        after = {gram: count for gram, count in counts[size - 1].items() if gram[:-1] == context}
        if not after:
            return lower
        taken = [Fraction(0), *map(Fraction, discounts[size - 1])]
        total = sum(after.values())
        share = sum((taken[min(count, 3)] for count in after.values()), Fraction(0)) / total
        count = after.get((*context, word), 0)
        return max(count - taken[min(count, 3)], Fraction(0)) / total + share * lower

    return probability


def trained(texts: Sequence[str], order: int) -> Estimate:
    offsets, words = word_hashes(pa.array(texts), 1 << 20)
    return estimate(offsets, words, order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [3, 200])
def test_probabilities_are_the_papers(order: int, count: int) -> None:
    texts = sentences(count, 0)
    found = trained(texts, order)
    expected = reference(texts, order, found.discounts)
    for text in [*sentences(5, 1), "w0 new w1 w2 w3", "new", texts[0]]:
        words = ("<s>", *text.split(), "</s>")
        exact = sum(math.log(expected(words[max(0, at - order + 1) : at], words[at])) for at in range(1, len(words)))
        sums, counts = score_ngrams(pa.array([text]), 1000, found.tables, found.unknown)
        assert counts[0] == len(words) - 1
        assert sums[0] == pytest.approx(exact, rel=1e-5)


def test_discounts_are_estimated_where_they_can_be() -> None:
    found = trained(sentences(200, 0, vocabulary=300), 3)
    for discounts in found.discounts[1:]:
        assert discounts != USUAL_DISCOUNTS
        assert all(0 < discount <= size for size, discount in enumerate(discounts, 1))
    assert trained(["a"], 2).discounts == [USUAL_DISCOUNTS] * 2


def test_probabilities_sum_to_one() -> None:
    found = trained(sentences(60, 2), 4)
    vocabulary = [hashed(f"w{number}")[0] for number in range(12)] + [hashed("unknown")[0], END]
    for context in ["", "w0", "w0 w1", "w3 w0 w0", "unseen", "w0 unseen", "w2 w1 w0 w0 w0"]:
        before = [BEGIN, *hashed(context)]
        logs = [word_log_probability([*before, word], len(before), found.tables, found.unknown) for word in vocabulary]
        assert sum(map(math.exp, logs)) == pytest.approx(1, abs=1e-6)


def hashed(text: str) -> list[int]:
    return word_hashes(pa.array([text]), 1000)[1].tolist()[1:-1]


def test_the_order_of_texts_does_not_matter() -> None:
    texts = sentences(100, 3)
    first, second = trained(texts, 4), trained(texts[::-1], 4)
    for a, b in zip(first.tables, second.tables, strict=True):
        for values, others in zip(vars(a).values(), vars(b).values(), strict=False):
            np.testing.assert_array_equal(values, others)
