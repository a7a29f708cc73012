"""Documents in rows: nothing is lost, nothing is cut that fits, and little room is wasted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.test_dataset import write_tokens

from tallow.data.dataset import TokenDataset
from tallow.data.packing import BestFit, best_fit
from tallow.errors import DataError
from tallow.models.blocks.context import SequenceContext
from tallow.objectives.causal import causal


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), capacity=st.integers(2, 25))
def test_each_token_but_a_documents_first_is_a_target_once(lengths: list[int], capacity: int) -> None:
    begins = np.cumsum([0, *lengths[:-1]])
    packed = BestFit(begins, sum(lengths), capacity)
    targets: list[int] = []
    used = 0
    for row in range(packed.num_rows):
        pieces = packed.pieces(row)
        sizes = [end - begin for begin, end in pieces]
        assert sizes == sorted(sizes, reverse=True)
        assert 0 < sum(sizes) <= capacity
        used += sum(sizes)
        for begin, end in pieces:
            targets += range(begin + 1, end)
            document = int(np.searchsorted(begins, begin, side="right")) - 1
            assert end <= begins[document] + lengths[document]
            if lengths[document] <= capacity:  # is whole
                assert (begin, end) == (begins[document], begins[document] + lengths[document])
    firsts = set(begins.tolist())
    assert sorted(targets) == [token for token in range(sum(lengths)) if token not in firsts]
    assert packed.padding == packed.num_rows * capacity - used


@given(lengths=st.lists(st.integers(1, 20), max_size=50))
def test_each_piece_goes_where_it_leaves_least_room(lengths: list[int]) -> None:
    rows, count = best_fit(np.array(lengths, dtype=np.int64), 20)
    room = [20] * count
    for length, row in sorted(zip(lengths, rows.tolist(), strict=True), key=lambda pair: -pair[0]):
        enough = [left for left in room if left >= length and left < 20]
        assert room[row] == min(enough, default=20)
        room[row] -= length
    assert sum(lengths) + sum(room) == 20 * count


def test_natural_lengths_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.2, 20_000).astype(np.int64) + 2
    packed = BestFit(np.cumsum(lengths) - lengths, int(lengths.sum()), 1025)
    assert packed.padding < 0.001 * packed.num_rows * 1025


DOCUMENTS = [[[1, 2, 3, 0], [4, 0]], [[5, 6, 0]], [[7, 0], [8, 9, 10, 11, 0]]]


def test_rows_of_a_data_set(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", DOCUMENTS)
    best = TokenDataset(tokens, "train", 6, seed=0, packing="best_fit")
    assert [best.sequence(row).tokens_BT[0].tolist() for row in range(best.num_sequences)] == [
        [8, 9, 10, 11, 0, 4, 0],
        [1, 2, 3, 0, 5, 6, 0],
        [7, 0, 0, 0, 0, 0, 0],
    ]
    assert best.sequence(0).documents_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert best.sequence(2).documents_BT.tolist() == [[0, 0, -1, -1, -1, -1, -1]]
    assert best.num_padding == 5
    together = TokenDataset(tokens, "train", 6, seed=0, packing="concatenate").sequence(0)
    assert together.documents_BT.tolist() == [[0] * 7]
    assert causal(together).loss_mask_BT.all()
    context = causal(together).context
    assert isinstance(context, SequenceContext)
    assert context.documents_BT is None


def test_documents_of_one_token_alone_are_an_error(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", [[[0], [0], [0]]])
    with pytest.raises(DataError, match="two tokens"):
        TokenDataset(tokens, "train", 6, seed=0, packing="best_fit")
