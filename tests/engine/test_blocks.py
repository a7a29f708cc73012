"""Blocks of the cache: counted, shared, found again."""

from __future__ import annotations

from array import array
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tallow.engine.blocks import NO_BLOCK, BlockPool


def test_published_blocks_are_found() -> None:
    pool = BlockPool(4)
    one, two = pool.allocate(2)
    first, second = pool.publish(one, "first"), pool.publish(two, "second")
    assert pool.find("first") == one
    assert pool.find("second") == two
    assert pool.find("third") is None
    assert (pool.name(one), pool.name(two)) == (first, second)
    assert first != second


def test_blocks_keep_their_content_until_they_are_needed() -> None:
    pool = BlockPool(3)
    one, two = pool.allocate(2)
    pool.publish(one, "first")
    pool.release([one, two])
    assert pool.num_free == 3
    assert pool.allocate(1) == [two]  # it is the cache of nothing
    assert pool.find("first") == one
    pool.share([one])
    pool.release([one])
    assert set(pool.allocate(2)) == {one, 3 - one - two}
    assert pool.find("first") is None


def test_names_are_not_used_twice() -> None:
    """What was published after a block that is used anew must not be found after the new content."""
    pool = BlockPool(1)
    [block] = pool.allocate(1)
    before = pool.publish(block, "first")
    pool.release([block])
    assert pool.allocate(1) == [block]
    assert pool.publish(block, "first") != before


def test_the_first_of_two_equal_blocks_is_found() -> None:
    pool = BlockPool(2)
    one, two = pool.allocate(2)
    assert pool.publish(one, "first") == pool.publish(two, "first")
    assert pool.find("first") == one
    pool.check([array("i", [one, two])])


def test_blocks_that_were_let_go_are_nobodys() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.share([NO_BLOCK, *blocks])
    pool.check([array("i", [NO_BLOCK, *blocks]), array("i", blocks)])
    pool.release([NO_BLOCK, *blocks])
    pool.release(blocks)
    assert pool.num_free == 2


def test_check_sees_what_is_wrong() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError, match="miscounted"):
        pool.check([])
    with pytest.raises(AssertionError, match="miscounted"):
        pool.check([array("i", blocks), array("i", blocks)])
    pool.check([array("i", blocks)])


class Traffic(RuleBasedStateMachine):
    """Sequences that come, share, grow and go, in any order: the books always agree."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.held: list[array[int]] = []

    @rule(target=tables, count=st.integers(0, 3))
    def begin(self, count: int) -> array[int]:
        table = array("i", self.pool.allocate(min(count, self.pool.num_free)))
        self.held.append(table)
        return table

    @rule(target=tables, table=tables)
    def fork(self, table: array[int]) -> array[int]:
        self.pool.share(table)
        copy = array("i", table)
        self.held.append(copy)
        return copy

    @rule(table=tables, root=st.sampled_from("ab"))
    def publish(self, table: array[int], root: str) -> None:
        key: Hashable = root
        for block in table:
            key = self.pool.publish(block, (key, "tokens"))

    @rule(table=consumes(tables))
    def end(self, table: array[int]) -> None:
        self.pool.release(table)
        self.held = [other for other in self.held if other is not table]

    @rule(target=tables, root=st.sampled_from("ab"))
    def find(self, root: str) -> array[int]:
        block = self.pool.find((root, "tokens"))
        table = array("i", [] if block is None else [block])
        self.pool.share(table)
        self.held.append(table)
        return table

    @invariant()
    def books_agree(self) -> None:
        self.pool.check(self.held)


TestTraffic = Traffic.TestCase


@given(blocks=st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_forgetting_frees_nothing(blocks: list[int]) -> None:
    pool = BlockPool(10)
    held = pool.allocate(10)
    for block in blocks:
        pool.publish(block, block)
    pool.release(held)
    pool.clear_cache()
    assert pool.num_free == 10
    assert all(pool.find(block) is None for block in blocks)
