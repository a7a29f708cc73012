from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.permutation import Permutation


@given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 100))
def test_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    order = Permutation(size, seed, epoch)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(size=st.integers(2**30, 2**60), places=st.lists(st.integers(0, 2**30 - 1), max_size=50, unique=True))
def test_large_ranges_need_no_table(size: int, places: list[int]) -> None:
    order = Permutation(size, 1)(np.array(places, dtype=np.int64))
    assert len(set(order.tolist())) == len(places)
    assert all(0 <= element < size for element in order.tolist())


def test_elements_do_not_depend_on_what_is_asked_with_them() -> None:
    order = Permutation(1000, 3, 1)
    whole = order(np.arange(1000))
    assert [int(order(np.array([place]))[0]) for place in range(0, 1000, 37)] == whole[::37].tolist()


def test_keys_give_different_orders() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (0,), (1, 1), (-1, 0)]
    orders = [tuple(Permutation(1000, *key)(np.arange(1000)).tolist()) for key in keys]
    assert len(set(orders)) == len(keys)


@pytest.mark.parametrize("size", [1000, 1024, 1025, 4096, 5000])
def test_order_looks_random(size: int) -> None:
    """Over many keys: every element is about as often anywhere, neighbours are not neighbours before."""
    orders = np.stack([Permutation(size, seed)(np.arange(size)) for seed in range(200)])
    standard_error = size / np.sqrt(12 * 200)
    assert np.abs(orders.mean(axis=0) - (size - 1) / 2).max() < 5 * standard_error
    for order in orders[:20]:
        correlation = np.corrcoef(order, np.arange(size))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(size)
        assert (np.abs(np.diff(order)) == 1).mean() < 0.02
        assert (order == np.arange(size)).sum() < 10


def test_order_is_fixed() -> None:
    """The order is part of what a run can be resumed from: it must not change with a release."""
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [1, 4, 8, 6, 5, 0, 9, 3, 2, 7]
