from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.hashed_grams import Grams, count_grams, hashed_grams, sum_grams, weigh_grams

TEXTS = st.lists(st.one_of(st.text(), st.text("aAbé人 .\n\x7f1", max_size=80)), max_size=5)
GRAMS = st.builds(
    Grams,
    bytes=st.integers(0, 100),
    words=st.integers(0, 3),
    shortest=st.integers(0, 3),
    longest=st.integers(0, 4),
    bits=st.integers(1, 20),
)


@given(TEXTS, GRAMS)
def test_fast_is_the_reference(texts: list[str], grams: Grams) -> None:
    array = pa.array(["left out", *texts], pa.string()).slice(1)
    weights = np.random.default_rng(0).normal(size=1 << grams.bits).astype(np.float32)
    with using("fast"):
        features, sums = hashed_grams(array, grams), sum_grams(array, grams, weights)
    with using("reference"):
        expected, expected_sums = hashed_grams(array, grams), sum_grams(array, grams, weights)
    np.testing.assert_array_equal(features.offsets, expected.offsets)
    np.testing.assert_array_equal(features.places, expected.places)
    np.testing.assert_allclose(features.values, expected.values, rtol=1e-6)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-4, atol=1e-5)


def test_what_is_counted() -> None:
    grams = Grams(bytes=100, words=2, shortest=1, longest=0, bits=20)
    features = hashed_grams(pa.array(["A b, a B", "  a\tb  "]), grams)
    first, second = (set(features.places[begin:end].tolist()) for begin, end in [(0, 6), (6, 9)])
    assert features.offsets.tolist() == [0, 6, 9]  # a, "a b" (twice), b, "b ,", ",", ", a"; then a, "a b", b
    assert second < first
    lengths = [np.square(features.values[:6]).sum(), np.square(features.values[6:]).sum()]
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


@given(TEXTS, GRAMS)
def test_fast_counts_are_the_reference(texts: list[str], grams: Grams) -> None:
    array = pa.array(["left out", *texts], pa.string()).slice(1)
    weights = np.random.default_rng(0).integers(-100, 100, 1 << grams.bits).astype(np.float64)
    found = []
    for versions in ("fast", "reference"):
        with using("fast" if versions == "fast" else "reference"):
            sums, sizes = weigh_grams(array, grams, weights)
            totals = count_grams(array, grams)
        assert sums.sum() == totals @ weights
        assert sizes.sum() == totals.sum()
        found.append([sums.tolist(), sizes.tolist(), totals.tolist()])
    assert found[0] == found[1]
