"""Merges are those of the definition, of the library that others train with, and exact where that one overflows."""

from __future__ import annotations

import lzma
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from tallow.data.builtin import builtin
from tallow.kernels.dispatch import using
from tallow.kernels.text import merges as module
from tallow.kernels.text.merges import Merge

LETTERS = [bytes([letter]) for letter in b"abcd"]


def learn_merges(
    words: Sequence[Sequence[int]], counts: Sequence[int], names: Sequence[bytes], vocab_size: int, min_count: int
) -> list[Merge]:
    symbols = np.array([symbol for word in words for symbol in word], dtype=np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    return module.learn_merges(symbols, ends, np.array(counts, dtype=np.int64), names, vocab_size, min_count)


@given(
    words=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=12),
    counts=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    vocab_size=st.integers(4, 40),
    min_count=st.integers(0, 4),
)
def test_it_is_what_the_definition_says(
    words: list[list[int]], counts: list[int], vocab_size: int, min_count: int
) -> None:
    given = (words, counts[: len(words)], LETTERS, vocab_size, min_count)
    with using("reference"):
        expected = learn_merges(*given)
    assert learn_merges(*given) == expected


def test_counts_beyond_32_bits_are_exact() -> None:
    words, counts = [[0, 1], [2, 3], [0, 0]], [2**40 + 1, 2**40 + 2, 2**31 + 7]
    for versions in ("fast", "reference"):
        with using(versions):
            assert learn_merges(words, counts, LETTERS, 7, 2) == [
                Merge(2, 3, 4, 2**40 + 2),
                Merge(0, 1, 5, 2**40 + 1),
                Merge(0, 0, 6, 2**31 + 7),
            ]


def test_equal_texts_are_one_symbol() -> None:
    # "ab" + "c" and "a" + "bc" are the same
    words, counts = [[0, 1], [0, 1, 2], [1, 2], [3, 0, 1, 2]], [9, 5, 6, 2]
    merges = learn_merges(words, counts, LETTERS, 30, 1)
    assert [merge.merged for merge in merges] == [4, 5, 6, 7]
    with using("reference"):
        assert learn_merges(words, counts, LETTERS, 30, 1) == merges


def test_merges_are_those_of_the_library() -> None:
    with lzma.open(builtin("tallow:pepys"), "rt", encoding="utf-8") as file:
        text = file.read(400_000)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, min_frequency=2, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    pieces = text.splitlines(keepends=True)
    backend.train_from_iterator(pieces, trainer)
    counted = Counter(word for piece in pieces for word, _ in splitter.pre_tokenize_str(piece))
    ids = {letter: id for id, letter in enumerate(alphabet)}
    words = sorted(counted)
    random.Random(0).shuffle(words)  # in whatever order they come
    names = [letter.encode() for letter in alphabet]
    merges = learn_merges(
        [[ids[letter] for letter in word] for word in words], [counted[word] for word in words], names, 1500, 2
    )
    vocabulary = backend.get_vocab()
    learned = [*alphabet]
    for merge in merges:
        learned.append(learned[merge.left] + learned[merge.right])
    assert len(merges) == 1500 - 256
    assert {token: id for id, token in enumerate(learned)} == vocabulary
