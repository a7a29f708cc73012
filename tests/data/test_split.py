from __future__ import annotations

import random
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.read import Document
from tallow.data.split import Keys, choose_held_out, is_held_out, survivors
from tallow.errors import DataError


def keys_of(documents: list[Document]) -> Keys:
    raw = b"".join(document.digest[:16] + bytes.fromhex(document.id) for document in documents)
    return np.frombuffer(raw, dtype=">u8").astype(np.uint64).reshape(-1, 4)


def make(texts: list[str]) -> list[Document]:
    return [Document.make(text, "a", offset) for offset, text in enumerate(texts)]


@given(texts=st.lists(st.text("abc", max_size=2), min_size=1, max_size=40), fraction=st.floats(0.001, 0.99))
def test_both_sides_get_something_and_equal_texts_stay_together(texts: list[str], fraction: float) -> None:
    keys = keys_of(make(texts))
    if len(set(texts)) == 1:
        with pytest.raises(DataError, match="only one document"):
            choose_held_out(keys, fraction)
        return
    held_out = choose_held_out(keys, fraction)
    validation = {text for text, out in zip(texts, held_out, strict=True) if out}
    train = {text for text, out in zip(texts, held_out, strict=True) if not out}
    assert validation
    assert train
    assert not validation & train


@given(texts=st.lists(st.text("abc", max_size=2), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_survivors_are_one_a_text_whatever_the_order(texts: list[str], seed: int) -> None:
    documents = make(texts)
    kept = [document for document, keep in zip(documents, survivors(keys_of(documents)), strict=True) if keep]
    assert sorted(document.text for document in kept) == sorted(set(texts))
    for document in kept:
        assert document.id == min(other.id for other in documents if other.text == document.text)
    random.Random(seed).shuffle(documents)
    again = [document for document, keep in zip(documents, survivors(keys_of(documents)), strict=True) if keep]
    assert {document.id for document in again} == {document.id for document in kept}


def test_the_share_is_as_asked_and_sets_are_nested() -> None:
    documents = make([f"text {number}" for number in range(20_000)])
    keys = keys_of(documents)
    small, large = choose_held_out(keys, 0.02), choose_held_out(keys, 0.05)
    assert 0.017 < small.mean() < 0.023
    assert not (small & ~large).any()
    assert list(small[:500]) == [is_held_out(document.digest, 0.02) for document in documents[:500]]


def test_nothing_is_held_out_at_zero_and_nothing_left_is_an_error() -> None:
    assert not choose_held_out(keys_of(make(["a"])), 0).any()
    with pytest.raises(DataError, match="no document is left"):
        choose_held_out(keys_of([]), 0.02)


def test_rule_is_the_documented_one() -> None:
    digest = sha256(b"text").digest()
    share = int.from_bytes(digest[:8]) / 2**64
    assert not is_held_out(digest, share * 0.999)
    assert is_held_out(digest, share * 1.001)
