"""Where something private may be: the scan in C++ finds what the patterns find."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.candidates import SECRET_WORDS, Candidate, find_candidates
from tallow.kernels.text.number_forms import NumberForms, NumberPlan

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
    plans=[
        NumberPlan({(3, 3, 4): {r"2\d*"}, (2, 5): {r"\d*", r"1[23]?\d*"}}, r"(?:2[01]|1)\d{6,8}|[0-46-9]{7}"),
        NumberPlan({(1, 6): {r"12\d*", r"0\d*"}}, r"0?(?:12(?:3|45)?\d{3,4}|99\d*)|44(2)?12736"),
    ],
    abroad={"44": 8, "1": 10},
    unplanned=False,
    phone_words=["<tel>", "тел>", "k"],
    cards=["4 4 4", "12", "8"],
    issuers={"4": [8, 12], "123": [8, 9]},
    ids={"3-2-4": "", "5 2": "", "7": "mod 97", "12": "", "9": "mod 11", "3 1 4": "mod 11"},
    lettered=["8", "3 1 4", "1.1.5"],
    bare=["8", "3-4"],
    id_words=["<密码", "ssn"],
    accounts={"GB": 22, "DE": 8},
    own_addresses=False,
)
WIDE = replace(FORMS, unplanned=True, own_addresses=True)


def rows(texts: list[str], left_out: int, versions, forms: NumberForms | None = None) -> list[tuple[int, ...]]:
    with using(versions):
        return sorted(map(tuple, find_candidates(pa.array(texts, pa.string()).slice(left_out), forms).tolist()))


@given(st.lists(TEXTS, max_size=3), st.integers(0, 2), st.sampled_from([None, FORMS, WIDE]))
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
    ("text", "kinds"),
    [
        ("212 736 5000", "phone"),
        ("312 736 5000", ""),
        ("225 736 5000", ""),  # usual, and not in the plan
        ("9 (212) 736-5000", "phone"),
        ("9-212 736 5000", ""),
        ("0044 207946", "phone"),
        ("0044 20794", ""),
        ("0011 207946", ""),
        ("+44 207946", "phone"),
        ("+9944 207946", ""),
        ("Tel. 2073640", "phone"),
        ("Tel. 2073650", ""),
        ("hotel 2073640", ""),
        ("hotel" + " " * 32 + "2073640", "phone"),  # others may see `tel` alone
        ("tel\n2073640", ""),
        ("2073640 (Tel.", "phone"),
        ("tel" + "." * 60 + "2073640", ""),
        ("4111 1111 1117", "card"),
        ("4111-1111 1117", ""),
        ("4111 1111 1119", ""),
        ("5111 1111 1114", ""),
        ("41111113", "card"),
        ("1 123-45-6789 2", "id"),
        ("1-123-45-6789", ""),
        ("1234571", "id"),
        ("1234572", ""),
        ("079071119", "id"),
        ("079071118", ""),
        ("12345678", ""),
        ("12345678-Z", "id"),
        ("7B12345678", "id"),
        ("SSN 12345678", "id"),
        ("SSN 5123456789", ""),
        ("GB82 WEST 1234 5698 7654 32", "iban"),
        ("gb82west12345698765432", "iban"),
        ("GB82WEST12345698765433", ""),
        ("XX82WEST12345698765432", ""),
        ("8.8.8.8", "ipv4"),
        ("10.8.8.8", ""),
        ("172.31.8.8", ""),
        ("172.32.8.8", "ipv4"),
        ("239.255.1.1", ""),
    ],
)
def test_numbers_stand_that_are_of_some_form(text: str, kinds: str, versions) -> None:
    found = {Candidate(kind).name.lower() for _, kind, _, _ in rows([text], 0, versions, FORMS)}
    assert found == set(filter(None, [kinds]))


@pytest.mark.parametrize("versions", ["fast", "reference"])
def test_candidates_are_at_characters(versions) -> None:
    text = "Почта: иван@пример.рф, +7 (495) 123-45-67, password = x, fe80::1, GB82 WEST, 10.0.0.1, 。sk-a_word_of_15"
    with using(versions):
        found = find_candidates(pa.array(["", text]))
    assert set(found[:, 0].tolist()) == {1}
    assert {(Candidate(kind), text[start:end]) for _, kind, start, end in found.tolist()} == {
        (Candidate.AT, "@"),
        (Candidate.PHONE, "7 (495) 123-45-67"),
        (Candidate.CARD, "7 (495) 123-45-67"),
        (Candidate.ID, "7 (495) 123-45-67"),
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
    assert find_candidates(pa.array([None, "1234567"], pa.string()))[:, [0, 2, 3]].tolist() == [[1, 0, 7]] * 3
    assert find_candidates(pa.array([], pa.string())).shape == (0, 4)
    assert find_candidates(pa.array([], pa.string())).dtype == np.int32
