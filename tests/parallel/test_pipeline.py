from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.parallel.layouts import micro_batches, rows_of

from tallow.data.batch import PADDING_DOCUMENT
from tallow.parallel.pipeline import cut_evenly, number_of_micro_batches

counts = st.integers(1, 40)


@given(rows=st.integers(0, 40), largest=counts, stages=st.integers(2, 8), in_rounds=st.booleans())
def test_micro_batches_are_no_larger_than_asked_for(rows: int, largest: int, stages: int, in_rounds: bool) -> None:
    number = number_of_micro_batches(rows, largest, stages, in_rounds=in_rounds)
    assert number >= stages
    assert -(-rows // number) <= largest
    assert not in_rounds or number % stages == 0
    assert number - (stages if in_rounds else 1) < max(stages, -(-rows // largest)), "not more than are needed"


def test_rows_are_cut_anew_and_filled_up_with_padding() -> None:
    rows = rows_of(1).rows(slice(5))
    parts = cut_evenly(micro_batches(rows, range(5), 3), 3, 2)
    assert [len(part.tokens_BT) for part in parts] == [2, 2, 2]
    for number in range(5):
        part, place = parts[number // 2], number % 2
        assert part.tokens_BT[place].equal(rows.tokens_BT[number])
        assert part.trainable_BT[place].equal(rows.trainable_BT[number])
        assert part.documents_BT[place].equal(rows.documents_BT[number])
    assert parts[2].documents_BT[1].eq(PADDING_DOCUMENT).all()
    assert not parts[2].trainable_BT[1].any()


def test_no_rows_are_padding() -> None:
    parts = cut_evenly([], 2, 1)
    assert [part.documents_BT.eq(PADDING_DOCUMENT).all() for part in parts] == [True, True]
