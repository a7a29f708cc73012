from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.text.strange import PIECES, texts

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text.gram_index import GramIndex, Places

VERSIONS: tuple[Versions, ...] = ("fast", "reference")
few_words = st.lists(st.sampled_from(("a ", "b ", "b. ", "Á ", "20 ", "0 ", "中")), max_size=12).map("".join)


def search(passages: list[str], given_texts: list[str], *settings: int) -> tuple[GramIndex, Places]:
    index = GramIndex(pa.array(passages, pa.string()), *settings)
    return index, index.search(pa.array(given_texts, pa.string()), np.ones(index.count, dtype=bool))


@given(
    st.lists(few_words | texts, max_size=4), st.lists(few_words | texts, max_size=3), st.integers(1, 3),
    st.integers(0, 3), st.integers(0, 4), st.integers(0, 5),
)  # fmt: skip
def test_fast_index_is_the_reference(
    passages: list[str], others: list[str], shortest: int, longer: int, size: int, off: int
) -> None:
    array = pa.array([*passages, *others], pa.string()).slice(min(1, len(passages)))
    found = []
    for versions in VERSIONS:
        with using(versions):
            index = GramIndex(pa.array(passages, pa.string()), shortest + longer, shortest, size)
            active = np.arange(index.count) != off
            places = index.search(array, active)
        found.append(
            [index.lengths.tolist(), index.offsets.tolist(), index.members.tolist(), *(p.tolist() for p in places)]
        )
    assert found[0] == found[1]


def test_what_is_found_is_there() -> None:
    text = "He said — “The  CAT's 3.5 kg, Café\nau lait!” and left."
    for versions in VERSIONS:
        with using(versions):
            index, places = search(
                ["the cat's 3.5 kg cafe au LAIT", "cat’s 3.5"], [text, "", "the cat's 3.4 kg"], 4, 2, 5
            )
        assert index.sizes.tolist() == [4, 1]
        assert index.count == 5
        assert places.sizes.tolist() == [11, 0, 4]
        raw = text.encode()
        parts = [raw[begin:end].decode() for begin, end in zip(places.begins, places.ends, strict=True)]
        assert parts == [
            "The  CAT's 3.5 kg", "CAT's 3.5", "CAT's 3.5 kg, Café", "3.5 kg, Café\nau", "kg, Café\nau lait",
        ]  # fmt: skip
        assert places.firsts.tolist() == [2, 3, 3, 4, 5]
        assert not places.rows.any()


def test_numbers_are_told_apart() -> None:
    """Else every exercise would be found where the same one is asked of other numbers."""
    for versions in VERSIONS:
        with using(versions):
            _, places = search(
                ["He pays 16 for 100 eggs"], ["he pays 16 for 100 eggs", "he pays 16 for 10 eggs"], 5, 5, 0
            )
        assert places.rows.tolist() == [0, 0]


def test_short_passages_are_whole() -> None:
    for versions in VERSIONS:
        with using(versions):
            index, places = search(["one two three", "one", "a b c"], ["zero one two three four a b c"], 5, 3, 4)
        assert index.sizes.tolist() == [1, 0, 0]  # too few words, too few bytes
        assert places.firsts.tolist() == [1]


def test_same_hashes_are_not_enough() -> None:
    """Words of Thue and Morse, at 2^11 of which polynomials modulo 2^64 are the same whatever the words' hashes."""
    order = [bin(number).count("1") % 2 for number in range(2**11)]
    one, other = (" ".join("ab"[bit ^ flip] for bit in order) for flip in (0, 1))
    passages = [one, other]
    for size in (2, 60):
        _, places = search(passages, [one], size, size, 0)
        words = one.split()
        index = GramIndex(pa.array(passages), size, size, 0)
        assert index.count == len(
            {tuple(text.split()[at : at + size]) for text in passages for at in range(2**11 - size + 1)}
        )
        assert len(places.rows) == len(words) - size + 1


def test_pieces_meet_all_rules() -> None:
    _, places = search(["".join(PIECES)], ["".join(PIECES)], 3, 3, 0)
    assert len(places.rows) == places.sizes[0] - 2
