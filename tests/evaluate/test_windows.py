from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallow.evaluate.windows import cut_windows

BOS = 99


def test_without_bos_the_first_token_of_a_window_is_not_scored() -> None:
    assert list(cut_windows([0, 1, 2, 3, 4, 5], 4)) == [([0, 1, 2, 3], 3), ([4, 5], 1)]


def test_a_last_token_alone_is_not_scored() -> None:
    assert list(cut_windows([0, 1, 2], 2)) == [([0, 1], 1)]
    assert list(cut_windows([0], 2)) == []


def test_with_bos_every_token_is_scored_and_bos_takes_a_place() -> None:
    assert list(cut_windows([0, 1, 2, 3], 3, bos_id=BOS)) == [([BOS, 0, 1], 2), ([BOS, 2, 3], 2)]


def test_overlapping_windows_score_a_token_once_with_more_before_it() -> None:
    assert list(cut_windows([0, 1, 2, 3, 4, 5], 4, stride=2)) == [([0, 1, 2, 3], 3), ([2, 3, 4, 5], 2)]
    assert list(cut_windows([0, 1, 2, 3, 4], 4, stride=2, bos_id=BOS)) == [([BOS, 0, 1, 2], 3), ([BOS, 2, 3, 4], 2)]


@given(length=st.integers(0, 60), window=st.integers(2, 20), overlap=st.integers(0, 19), with_bos=st.booleans())
def test_windows_cover_the_text_in_order(length: int, window: int, overlap: int, with_bos: bool) -> None:
    room = window - with_bos
    stride = max(1, room - overlap)
    pieces = list(cut_windows(range(length), window, stride, BOS if with_bos else None))
    scored = [token for piece in pieces for token in piece.ids[-piece.scored :]]
    assert scored == sorted(set(scored))
    unscored = set(range(length)) - set(scored)
    if with_bos:
        assert not unscored
    elif stride < room:
        assert unscored <= {0}
    else:
        assert unscored == set(range(0, length, room))
    for piece in pieces:
        assert 0 < piece.scored < len(piece.ids) <= window
        assert piece.ids[0] == BOS or not with_bos
