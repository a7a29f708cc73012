from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.kernels.text.strange import texts

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text.classes import ALONE, LETTER, LOWER, MARK, SPACE, TERMINAL, WORD, character_tables
from tallow.kernels.text.counts import COUNTS, count_texts
from tallow.kernels.text.words import folded, words

VERSIONS: tuple[Versions, ...] = ("fast", "reference")


def test_kinds() -> None:
    kinds = character_tables().kinds
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    categories = np.array([unicodedata.category(character) for character in characters])
    majors = categories.astype("U1")
    assert np.array_equal(kinds & SPACE > 0, [character.isspace() for character in characters])
    assert np.array_equal(kinds & LETTER > 0, [character.isalpha() for character in characters])
    assert np.array_equal(kinds & WORD > 0, (majors == "L") | (majors == "N"))
    assert np.array_equal(kinds & MARK > 0, (majors == "M") | (categories == "Cf"))
    assert np.array_equal(kinds & LOWER > 0, categories == "Ll")
    assert not np.any((kinds & ALONE > 0) & (kinds & LETTER == 0))
    assert all(kinds[ord(character)] & TERMINAL for character in ".!?。！？؟।")
    assert not any(kinds[ord(character)] & TERMINAL for character in ',:;…"a')
    assert all(kinds[ord(character)] & ALONE for character in "中々あアไກမខ")
    assert not any(kinds[ord(character)] & ALONE for character in "aЯف한עअ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t we? 3.14, 1,000.", "Don’t|we|?|3.14|,|1,000|."),
        ("so... -- !!1 #a", "so|...|--|!!|1|#|a"),
        ("中国人 iPhone手机。", "中|国|人|iPhone|手|机|。"),
        ("ที่นี่", "ที่|นี่"),
        ("می‌خواهم cafe\u0301 ❤️👍", "می‌خواهم|cafe\u0301|❤️|👍"),
        ("'quoted' O'Neil's a.b 1.a x2.5", "'|quoted|'|O'Neil's|a|.|b|1|.|a|x2.5"),
        (" \n\u2003", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert "|".join(word.text for word in words(text)) == expected


def test_folded() -> None:
    assert [folded(word) for word in ("Straße", "CAFÉ", "cafe\u0301", "1,024", "x٣٤y", "don’t", "Йод", "İ", "中")] == [
        "straße", "cafe", "cafe", "0", "x0y", "dont", "иод", "i", "中",
    ]  # fmt: skip


def count(text: str) -> dict[str, int]:
    found = []
    for versions in VERSIONS:
        with using(versions):
            found.append(
                {name: int(values[0]) for name, values in count_texts(pa.array([text]), ["the", "of"]).items()}
            )
    assert found[0] == found[1]
    return found[0]


def check(text: str, **expected: int) -> None:
    found = count(text)
    assert {name: found[name] for name in expected} == expected


def test_counts_of_words() -> None:
    check(
        "The cat of the 2 #tags... of… 中国",
        words=12,
        plain_words=9,
        plain_characters=20,
        letter_words=8,
        stop_words=2,
        hashes=1,
        ellipses=2,
    )


def test_lone_symbols() -> None:
    check("a, b -- c !? (d) ...", lone_symbols=3)
    check("-a- 中。", lone_symbols=0)
    check("", lone_symbols=0)


def test_counts_of_lines() -> None:
    check("", lines=0, filled_lines=0, newlines=0, paragraphs=0)
    check("\n\n", lines=2, filled_lines=0, newlines=2, paragraphs=0)
    check("- a.\n • b... \n\nc。\r\nd!x", lines=5, filled_lines=4, bullet_lines=2, ellipsis_lines=1, terminal_lines=3)
    check("x" * 30 + "\n" + "y" * 31, short_lines=1)
    check("ab\nab\ncd\nab", duplicate_lines=2, duplicate_line_characters=4)
    check("ab\ncd\n \nab\ncd\n\n\nef\n\nef\ng", paragraphs=4, duplicate_paragraphs=1, duplicate_paragraph_characters=5)


def test_counts_of_repeated_words() -> None:
    check("a b c d", top_2_gram_characters=3, top_3_gram_characters=5, top_4_gram_characters=7)
    check("中国 中国", top_2_gram_characters=4, top_3_gram_characters=4)  # 国 中 has a space and one copy
    check("cc dd a b a b", top_2_gram_characters=6)
    check("a b c d e x a b c d e", duplicate_5_gram_characters=5, duplicate_6_gram_characters=0)
    check("a a a a a a a a a a", duplicate_5_gram_characters=5)
    check("a", top_2_gram_characters=0)


@given(st.lists(texts, max_size=4), st.integers(0, 2))
@example(["a b " * 12 + "//" + "/// // ///"], 0)
def test_fast_counts_are_the_reference(given_texts: list[str], left_out: int) -> None:
    array = pa.array(given_texts, pa.string()).slice(left_out)
    found = []
    for versions in VERSIONS:
        with using(versions):
            counts = count_texts(array, ["the", "and", "a"])
            found.append({name: counts[name].tolist() for name in COUNTS})
    assert found[0] == found[1]
