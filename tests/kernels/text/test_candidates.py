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
    ]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=40)


def rows(texts: list[str], left_out: int, versions) -> list[tuple[int, ...]]:
    with using(versions):
        return sorted(map(tuple, find_candidates(pa.array(texts, pa.string()).slice(left_out)).tolist()))


@given(st.lists(TEXTS, max_size=4), st.integers(0, 2))
@example(["é" * 20 + "1234567"], 0)
@example(["1 2 3 4 5 6 7    8", "۱۲۳۴۵۶۷"], 0)
def test_the_scan_finds_what_the_patterns_find(texts: list[str], left_out: int) -> None:
    assert rows(texts, left_out, "fast") == rows(texts, left_out, "reference")


@pytest.mark.parametrize("versions", ["fast", "reference"])
def test_candidates_are_at_characters(versions) -> None:
    text = "Почта: иван@пример.рф, +7 (495) 123-45-67, password = x, fe80::1, GB82 WEST, 10.0.0.1, 。a_word_of_15_byt"
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
        (Candidate.TOKEN, "a_word_of_15_byt"),
    }


HOSTILE = ["a@", "1", "1.", ":", "::", "1:", "-", "-----BEGIN ", "password:", "۱ ", "1.2.3.4 ", "GB82 ", "é", "a"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_scan_takes_no_longer_for_hostile_text(piece: str) -> None:
    """500 KB in a time that no scan needs whose cost grows with the square: that would be minutes."""
    hostile = pa.array([(piece * 500_000)[:500_000]])
    begin = time.process_time()
    find_candidates(hostile)
    assert time.process_time() - begin < 0.5


def test_texts_that_are_null_have_none() -> None:
    assert find_candidates(pa.array([None, "1234567"], pa.string())).tolist() == [[1, Candidate.NUMBER, 0, 7]]
    assert find_candidates(pa.array([], pa.string())).shape == (0, 4)
    assert find_candidates(pa.array([], pa.string())).dtype == np.int32
