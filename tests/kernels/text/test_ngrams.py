from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.ngrams import BEGIN, END, NgramTable, longer_keys, score_ngrams, word_hashes

TEXTS = st.lists(
    st.one_of(st.text(), st.text("abAé 人ก\u200c،-\u3000\U0001f600\U00020000", max_size=60)), min_size=1, max_size=5
)


@given(TEXTS, st.integers(0, 80))
def test_words_fast_are_the_references(texts: list[str], most_bytes: int) -> None:
    array = pa.array(["left out", *texts], pa.string()).slice(1)
    with using("fast"):
        offsets, words = word_hashes(array, most_bytes)
    with using("reference"):
        expected_offsets, expected = word_hashes(array, most_bytes)
    assert offsets.tolist() == expected_offsets.tolist()
    assert words.tolist() == expected.tolist()


def words_of(text: str) -> list[int]:
    words = word_hashes(pa.array([text]), 1000)[1].tolist()
    assert (words[0], words[-1]) == (BEGIN, END)
    return words[1:-1]


def test_what_is_a_word() -> None:
    assert words_of("Don't stop") == words_of("don ' t\n STOP") != words_of("dont stop")
    assert words_of("été fini") == words_of("été") + words_of("fini")
    assert len(words_of("我们去公园。")) == 6
    assert words_of("نمی\u200cدانم؟") == words_of("نمی\u200cدانم ؟")
    assert len(words_of("한국어 문장")) == 2
    assert words_of("“word”") == words_of("“ word ”")
    assert words_of(" \n\u00a0\u3000") == []


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_keys_wrap_at_64_bits(key: int, word: int) -> None:
    expected = ((key ^ word * 0x9E3779B97F4A7C15 % 2**64) * 1099511628211) % 2**64
    found = longer_keys(np.array([key], np.uint64), np.array([word], np.uint64))
    assert int(found[0]) == expected ^ expected >> 32


def random_tables(texts: list[str], order: int) -> list[NgramTable]:
    """Of all n-grams of some texts, with any numbers."""
    generator, tables, keys = np.random.default_rng(0), list[NgramTable](), np.zeros(0, np.uint64)
    offsets, words = word_hashes(pa.array(texts, pa.string()), 1000)
    depths = np.arange(len(words)) - np.repeat(offsets[:-1], np.diff(offsets))
    for size in range(1, order + 1):
        shorter, keys = keys, words.copy()
        if size > 1:
            keys[size - 1 :] = longer_keys(shorter[size - 1 :], words[: 1 - size])
        found = np.unique(keys[depths >= size - 1])
        tables.append(NgramTable(found, *generator.normal(size=(2, len(found))).astype(np.float32)))
    return tables


@given(TEXTS, TEXTS, st.integers(1, 8))
def test_scores_fast_are_the_references(taught: list[str], texts: list[str], order: int) -> None:
    tables = random_tables(taught, order)
    array = pa.array([*texts, *taught[:1]], pa.string())
    with using("fast"):
        sums, counts = score_ngrams(array, 1000, tables, -9.0)
    with using("reference"):
        expected, expected_counts = score_ngrams(array, 1000, tables, -9.0)
    assert counts.tolist() == expected_counts.tolist()
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-5)
