"""Expected counts and losses are those of the definition, for whatever words and probabilities."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text import native
from tallow.kernels.text.lattices import LONGEST_PIECE, Floats, Lattices

VERSIONS: tuple[Versions, ...] = ("fast", "reference")


def lattices_of(words: Sequence[str], counts: Sequence[int], pieces: Sequence[str]) -> Lattices:
    """Of these words, and of each piece as one more that never occurs."""
    everything = [*words, *pieces]
    symbols = np.array([ord(character) for character in "".join(everything)], dtype=np.int32)
    ends = np.cumsum([len(word) for word in everything], dtype=np.int64)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    weights = np.array([*counts, *([0] * len(pieces))], dtype=np.int64)
    return Lattices(symbols, ends, weights, ends[len(words) :] - lengths, lengths)


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.text("abc", min_size=1, max_size=40), max_size=6),
    counts=st.lists(st.integers(1, 2**55), min_size=6, max_size=6),
    longer=st.lists(st.text("abc", min_size=2, max_size=6), max_size=12, unique=True),
    exponents=st.lists(st.floats(-60, 0), min_size=15, max_size=15),
    kept=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_both_versions_agree(
    words: list[str], counts: list[int], longer: list[str], exponents: list[float], kept: list[bool]
) -> None:
    pieces, counts = ["a", "b", "c", *longer], counts[: len(words)]
    probabilities = np.exp2(exponents[: len(pieces)])
    remaining = np.array([True] * 3 + kept[: len(longer)])
    results = list[list[Floats]]()
    for version in VERSIONS:
        with using(version):
            lattices = lattices_of(words, counts, pieces)
            expected, sum = lattices.expect(probabilities)
            losses = lattices.losses(probabilities, expected)
            lattices.keep(remaining)
            fewer, less = lattices.expect(probabilities[remaining])
            results.append([expected, np.array([sum, less]), losses, fewer])
    for fast, reference in zip(*results, strict=True):
        np.testing.assert_allclose(fast, reference, rtol=1e-9, atol=1e-9 * max(counts, default=1))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_word_of_two_letters(version: Versions) -> None:
    a, b, ab, count = 0.3, 0.2, 0.1, 2**40 + 1
    with using(version):
        lattices = lattices_of(["ab"], [count], ["a", "b", "ab"])
        expected, sum = lattices.expect(np.array([a, b, ab]))
        losses = lattices.losses(np.array([a, b, ab]), np.array([6.0, 3.0, 4.0]))
    whole = ab / (a * b + ab)
    np.testing.assert_allclose(expected, [count * (1 - whole), count * (1 - whole), count * whole], rtol=1e-12)
    assert sum == pytest.approx(count * math.log(a * b + ab), rel=1e-12)
    # 4 of 13 tokens become two each
    without = 4 * math.log((6 + 4) / 17 * (3 + 4) / 17)
    np.testing.assert_allclose(losses, [math.inf, math.inf, 4 * math.log(4 / 13) - without], rtol=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_likelihood_never_falls(version: Versions) -> None:
    draw = random.Random(7)
    words = ["".join(draw.choices("abcd", weights=(8, 4, 2, 1), k=draw.randint(1, 12))) for _ in range(60)]
    pieces = sorted({word[at : at + size] for word in words for at in range(len(word)) for size in (1, 2, 3)})
    with using(version):
        lattices = lattices_of(words, [draw.randint(1, 9) for _ in words], pieces)
        probabilities, found = np.full(len(pieces), 1 / len(pieces)), list[float]()
        for _ in range(12):
            expected, sum = lattices.expect(probabilities)
            probabilities = expected / expected.sum()
            found.append(sum)
    assert all(after >= before - 1e-12 * abs(before) for before, after in pairwise(found))
    assert found[-1] > 0.95 * found[0]  # both are negative


def test_long_words_of_rare_symbols_take_little_time() -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    pieces = ["a" * length for length in range(1, LONGEST_PIECE + 1)]
    begin = time.process_time()
    lattices = lattices_of(["a" * 200_000], [1], pieces)
    expected, sum = lattices.expect(np.array([2.0**-50] * (LONGEST_PIECE - 1) + [2.0**-10]))
    assert time.process_time() - begin < 1
    np.testing.assert_allclose(expected, [0] * (LONGEST_PIECE - 1) + [12_500], rtol=1e-9, atol=1e-6)
    assert sum == pytest.approx(-12_500 * 10 * math.log(2), rel=1e-9)
