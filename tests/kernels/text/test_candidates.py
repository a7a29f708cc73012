"""Where something private may be: the scan in C++ finds what the patterns find."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.candidates import SECRET_WORDS, Candidate, find_candidates
from tallow.kernels.text.number_forms import NumberForms

PIECES = st.sampled_from(
    [
        *("0", "12", "4111", "۳", "٤", "５", "1.2.3.4", "10.0.0.1", "GB82", "de89", "x1"),
        *(" ", "  ", "   ", "-", "--", "-----", ".", "(", ")", "/", "\xa0", "\u2011", "\n", "_", '"', "'"),
        *(
            "@",
            "a@b.c",
            "b.",
            "@x:",
            ":",
            "::",
            "ab:",
            "1:2:3:4:5:6:7:8",
            "=",
            "：",
            "é",
            "д",
            "好",
            "😀",
            "\x00",
            "\x7f",
        ),
        *(
            "a",
            "abcdefgh",
            "BEGIN ",
            "PRIVATE",
            *(word.decode() for word in SECRET_WORDS[:8]),
            "Token",
            "пароль",
            "密码",
        ),
        *("AKIA", "ABCDEFGH23456723", "ghp_", "sk-", "xoxb-", "ya29.", "eyJ", "A" * 26, "3" * 25, "0x", "bc1", "LTC1"),
        *("abcdef0123456789" * 3, "255", "256.", "I", "X", "B", "+", "＋", "+(", "tel", "Тел", "hotel", "ſtel", "K"),
        *("(212) 736-5000", "219-09-9998", "00442079460958", "0044", "6 ", "123 ", "1-", "12345678 Z"),
    ]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=40)


FORMS = NumberForms(
    pieces={(3, 3, 4): frozenset({"2"}), (2, 5): frozenset({"", "1"}), (1, 6): frozenset({"12", "0"})},
    abroad={"0044": 10, "001": 12},
    anywhere=frozenset({(3, 2, 4), (4, 4), (7,), (12,)}),
    lettered=frozenset({(8,), (3, 1), (1, 1)}),
    words=["<tel>", "тел>", "k", "<密码"],
)


def rows(texts: list[str], left_out: int, versions, forms: NumberForms | None = None) -> list[tuple[int, ...]]:
    with using(versions):
        return sorted(map(tuple, find_candidates(pa.array(texts, pa.string()).slice(left_out), forms).tolist()))


@given(st.lists(TEXTS, max_size=3), st.integers(0, 2), st.sampled_from([None, FORMS]))
@example(["é" * 20 + "1234567"], 0, None)
@example(["1 2 3 4 5 6 7    8", "۱۲۳۴۵۶۷"], 0, None)
def test_the_scan_finds_what_the_patterns_find(texts: list[str], left_out: int, forms: NumberForms | None) -> None:
    assert rows(texts, left_out, "fast", forms) == rows(texts, left_out, "reference", forms)


NUMBERS = st.lists(
    st.sampled_from(
        [
            *"012345678٣９",
            "44",
            "212",
            "7365000",
            " ",
            "-",
            ".",
            " (",
            "(",
            "\xa0",
            "tel ",
            "ТЕЛ",
            "hotel",
            "A",
            " Z",
            "+",
            "\n",
        ]
    ),
    max_size=25,
).map("".join)


@given(NUMBERS, st.integers(0, 60).map("x".__mul__))
@example("tel" + " " * 37 + "1 2 3 4 5 6 7 8", "")
def test_the_scan_finds_numbers_as_the_reference_does(text: str, far: str) -> None:
    texts = [text, f"tel{far}{text}", f"{text}{far}tel"]
    assert rows(texts, 0, "fast", FORMS) == rows(texts, 0, "reference", FORMS)


@pytest.mark.parametrize("versions", ["fast", "reference"])
@pytest.mark.parametrize(
    ("text", "stands"),
    [
        ("212 736 5000", True),
        ("312 736 5000", False),
        ("9 (212) 736-5000", True),
        ("9-212 736 5000", False),
        ("0044 207946", True),
        ("0044 20794", False),
        ("0011 207946", False),
        ("1 123-45-6789 2", True),
        ("1-123-45-6789", False),
        ("12345678", False),
        ("12345678-Z", True),
        ("7B12345678", True),
        ("+312 736 5000", True),
        ("Tel. 12345678", True),
        ("hotel 12345678", False),
        ("hotel" + " " * 32 + "12345678", True),  # others may see `tel` alone
        ("tel\n12345678", False),
        ("12345678 (Tel.", True),
        ("tel" + "." * 60 + "12345678", False),
    ],
)
def test_numbers_stand_that_are_of_some_form(text: str, stands: bool, versions) -> None:
    assert bool(rows([text], 0, versions, FORMS)) == stands


@pytest.mark.parametrize("versions", ["fast", "reference"])
def test_candidates_are_at_characters(versions) -> None:
    text = "Почта: иван@пример.рф, +7 (495) 123-45-67, password = x, fe80::1, GB82 WEST, 10.0.0.1, 。sk-a_word_of_15"
    with using(versions):
        found = find_candidates(pa.array(["", text]))
    assert set(found[:, 0].tolist()) == {1}
    assert {(Candidate(kind), text[start:end]) for _, kind, start, end in found.tolist()} == {
        (Candidate.AT, "@"),
        (Candidate.NUMBER, "7 (495) 123-45-67"),
        (Candidate.ASSIGNMENT, "="),
        (Candidate.IPV6, "fe80::1"),
        (Candidate.IBAN, "GB82"),
        (Candidate.IPV4, "10.0.0.1"),
        (Candidate.TOKEN, "sk-a_word_of_15"),
    }


HOSTILE = [
    "a@",
    "1",
    "1.",
    ":",
    "::",
    "1:",
    "-",
    "-----BEGIN ",
    "password:",
    "۱ ",
    "1.2.3.4 ",
    "GB82 ",
    "é",
    "a",
    "eyJ-",
    "1 (",
    "x12345678 ",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_scan_takes_no_longer_for_hostile_text(piece: str) -> None:
    """500 KB in a time that no scan needs whose cost grows with the square: that would be minutes."""
    hostile = pa.array([(piece * 500_000)[:500_000]])
    begin = time.process_time()
    find_candidates(hostile, FORMS)
    assert time.process_time() - begin < 0.5


def test_texts_that_are_null_have_none() -> None:
    assert find_candidates(pa.array([None, "1234567"], pa.string())).tolist() == [[1, Candidate.NUMBER, 0, 7]]
    assert find_candidates(pa.array([], pa.string())).shape == (0, 4)
    assert find_candidates(pa.array([], pa.string())).dtype == np.int32
