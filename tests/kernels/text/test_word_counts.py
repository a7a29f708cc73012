"""Pieces are those of the regular expressions, on any text."""

from __future__ import annotations

import lzma
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.word_counts import MaxDigits, WordCounter, WordCounts


def known(text: str) -> str:
    """Without characters that another version of Unicode may know."""
    return "".join(character for character in text if unicodedata.category(character) != "Cn")


TEXTS = st.lists(
    st.one_of(st.sampled_from(list("'sStTrReEvVlLmMdD  \n\r\t.12aé!中٣\u00a0\u3000\x1c")), st.characters(codec="utf-8"))
).map("".join)


def counted(texts: list[str], max_digits: MaxDigits) -> WordCounts:
    counter = WordCounter(max_digits)
    for text in texts:
        counter.add(pa.array([text]))
    return counter.counts()


def equal(one: WordCounts, two: WordCounts) -> bool:
    return one.bytes == two.bytes and np.array_equal(one.ends, two.ends) and np.array_equal(one.counts, two.counts)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS.map(known), max_size=4), max_digits=st.sampled_from([0, 1, 2, 3]))
def test_pieces_are_those_of_the_regular_expression(texts: list[str], max_digits: MaxDigits) -> None:
    fast = counted(texts, max_digits)
    with using("reference"):
        assert equal(fast, counted(texts, max_digits))
    assert int(np.diff(fast.ends, prepend=0) @ fast.counts) == sum(len(text.encode()) for text in texts)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["handbook.zh-CN", "handbook.fa-IR", "handbook.ru-RU", "handbook.fr-FR"])
def test_real_text(shared_data: Callable[..., Path], name: str) -> None:
    with lzma.open(shared_data("corpus_handbook", f"{name}.jsonl.xz"), "rt", encoding="utf-8") as file:
        texts = [known(file.readline()) for _ in range(10)]
    fast = counted(texts, 1)
    with using("reference"):
        assert equal(fast, counted(texts, 1))
    assert len(fast.counts) > 50
