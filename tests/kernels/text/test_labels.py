from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import DataError
from tallow.kernels.dispatch import using
from tallow.kernels.text.labels import LabelModel, Looks, look_at, most_probable_labels

WORDS = [b"the", b"\xc3\xa9t\xc3\xa9", b"</s>", b"a"]
TEXTS = st.lists(
    st.one_of(
        st.text(),
        st.text("athe <>\x85\xa0é\u4e00\n\x00", max_size=40),
        st.lists(st.sampled_from(["the", "été", "</s>", "__label__2", "__label__x", "a", "tea", "人人"])).map(" ".join),
        st.text("the é", min_size=300, max_size=1000),
    ),
    max_size=5,
)


def random_model(seed: int, labels: int, is_tree: bool, is_pruned: bool, shortest: int, longest: int) -> LabelModel:
    generator = np.random.default_rng(seed)
    buckets, width = 50, 3
    kept = None
    if is_pruned:
        chosen = generator.choice(buckets, 20, replace=False).astype(np.int32)
        kept = (chosen, generator.permutation(20).astype(np.int32))
    inputs = generator.normal(size=(len(WORDS) + buckets, width)).astype(np.float32)
    tree = np.array([[i + 1, labels + i - 1 if i else 0] for i in range(labels - 1)], dtype=np.int32).reshape(-1, 2)
    return LabelModel(
        words=[*WORDS, *(f"__label__{number}".encode() for number in range(labels))],
        word_count=len(WORDS),
        shortest=shortest,
        longest=longest,
        word_grams=int(generator.integers(0, 4)),
        buckets=buckets,
        kept=kept,
        inputs=inputs.view(np.uint8),
        outputs=generator.normal(size=(labels, width)).astype(np.float32),
        tree=tree if is_tree else None,
    )


@given(
    TEXTS,
    st.builds(
        random_model,
        seed=st.integers(0, 1000),
        labels=st.integers(1, 12),
        is_tree=st.booleans(),
        is_pruned=st.booleans(),
        shortest=st.integers(0, 3),
        longest=st.integers(0, 4),
    ),
    st.builds(Looks, bytes=st.integers(1, 1500), pieces=st.integers(1, 5), letters=st.integers(0, 3)),
)
def test_fast_is_the_reference(texts: list[str], model: LabelModel, looks: Looks) -> None:
    array = pa.array(["left out", *texts], pa.string()).slice(1)
    with using("fast"):
        labels, probabilities = most_probable_labels(array, model, looks)
    with using("reference"):
        expected, expected_probabilities = most_probable_labels(array, model, looks)
    np.testing.assert_allclose(probabilities, expected_probabilities, rtol=0, atol=1e-5)
    differ = labels != expected  # only where the next one is as probable
    assert (np.abs(probabilities[:, :1] - probabilities)[differ] < 1e-5).all()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=2000), st.integers(1, 2000), st.integers(1, 6))
def test_pieces_are_whole_characters_of_the_text(text: str, most: int, count: int) -> None:
    pieces = look_at(text.encode(), Looks(most, count, 0))
    assert all(piece.decode() in text for piece in pieces)
    assert 1 <= len(pieces) <= count
    assert sum(map(len, pieces)) <= most + 36 * count
    if len(text.encode()) <= most and len(pieces) == 1:
        assert pieces == [text.encode()]


def test_pieces_are_beginning_middle_and_end() -> None:
    text = b"a" * 5000 + b" " + b"b" * 5000 + b" " + b"c" * 5000
    first, middle, last = look_at(text, Looks(1500, 3, 0))
    assert first == b"a" * 500
    assert middle == b"b" * 500
    assert last == b"c" * 500


@pytest.mark.parametrize("is_pruned", [False, True])
@pytest.mark.parametrize("text", ["été" * 2000, "the été tea " * 1000])
def test_texts_longer_than_a_batch(text: str, is_pruned: bool) -> None:
    model, looks = random_model(1, 6, True, is_pruned, 1, 3), Looks(1 << 20, 1, 0)
    with using("fast"):
        labels, probabilities = most_probable_labels(pa.array([text]), model, looks)
    with using("reference"):
        expected, expected_probabilities = most_probable_labels(pa.array([text]), model, looks)
    assert labels.tolist() == expected.tolist()
    np.testing.assert_allclose(probabilities, expected_probabilities, rtol=0, atol=1e-4)


def test_words_that_make_each_search_long_are_refused() -> None:
    model = random_model(0, 2, True, False, 0, 0)
    model = replace(model, words=[b"same"] * 10_000 + model.labels, word_count=10_000)
    with using("fast"), pytest.raises(DataError, match="same hash"):
        most_probable_labels(pa.array(["a"]), model, Looks(100, 1, 0))
