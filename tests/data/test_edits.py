"""Edits of several kinds, made together."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.edits import EDITS, Edit, edited, make_edits, united


def test_edits_are_made_in_bytes() -> None:
    text = "Привет, a@x.org и мир"
    start = len("Привет, ".encode())
    assert edited(text, [Edit(start, start + 7, "<EMAIL_1>")]) == "Привет, <EMAIL_1> и мир"


def test_what_is_cut_out_takes_what_is_within_along() -> None:
    placeholder, cut = Edit(2, 4, "<X>"), Edit(0, 6, "")
    assert edited("abcdefgh", [placeholder, cut]) == "gh"
    assert edited("abcdefgh", [Edit(0, 3, ""), Edit(2, 4, "<X>")]) == "<X>efgh"
    assert edited("abcdefgh", [Edit(0, 2, "<X>"), Edit(1, 2, "")]) == "<X>cdefgh"


def test_several_columns_and_texts_without_any() -> None:
    texts = pa.array(["one two", "three", "four five", "six"])
    first = pa.array([[{"start": 0, "end": 3, "text": "1"}], None, [], None], EDITS)
    second = pa.array([[{"start": 4, "end": 7, "text": ""}], None, [{"start": 4, "end": 9, "text": ""}], []], EDITS)
    assert make_edits(texts, [first, second]).to_pylist() == ["1 ", "three", "four", "six"]
    assert make_edits(texts, []) is texts
    assert make_edits(texts[1:2], [first[1:2]]).to_pylist() == ["three"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.sampled_from(["", "<A>", "<B>"])), max_size=8))
def test_what_no_edit_touches_stays(places: list[tuple[int, int, str]]) -> None:
    text = "abcdefghijklmnopqrstuvwxyz0123"
    edits = [Edit(start, start + length, replacement) for start, length, replacement in places]
    touched = {place for edit in edits for place in range(edit.start, edit.end)}
    left = "".join(letter for place, letter in enumerate(text) if place not in touched)
    assert edited(text, edits).replace("<A>", "").replace("<B>", "") == left
    one = united(edits)
    assert all(before.end <= after.start for before, after in pairwise(one))
    assert {place for edit in one for place in range(edit.start, edit.end)} == touched
