"""Blocks of the cache: counted, shared, found again."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tallow.engine.blocks import BLOCK_TOKENS, BlockPool

FIRST, SECOND = tuple(range(BLOCK_TOKENS)), tuple(range(100, 100 + BLOCK_TOKENS))


def test_published_blocks_are_found_by_their_whole_past() -> None:
    pool = BlockPool(4)
    one, two = pool.allocate(2)
    pool.publish(one, "root", None, FIRST)
    pool.publish(two, "root", one, SECOND)
    assert pool.find("root", None, FIRST) == one
    assert pool.find("root", one, SECOND) == two
    assert pool.find("root", None, SECOND) is None
    assert pool.find("other tenant", None, FIRST) is None
    assert pool.find("root", two, SECOND) is None


def test_blocks_keep_their_content_until_they_are_needed() -> None:
    pool = BlockPool(3)
    one, two = pool.allocate(2)
    pool.publish(one, None, None, FIRST)
    pool.release([one, two])
    assert pool.num_free == 3
    assert pool.allocate(1) == [two]  # it is the cache of nothing
    assert pool.find(None, None, FIRST) == one
    pool.share([one])
    pool.release([one])
    assert set(pool.allocate(2)) == {one, 3 - one - two}
    assert pool.find(None, None, FIRST) is None


def test_what_follows_a_forgotten_block_is_not_found_under_its_successor() -> None:
    """The block is given to other tokens, so what was published after it has another past now."""
    pool = BlockPool(2)
    one, two = pool.allocate(2)
    pool.publish(one, None, None, FIRST)
    pool.publish(two, None, one, SECOND)
    pool.release([one])
    assert pool.allocate(1) == [one]
    pool.publish(one, None, None, SECOND)
    assert pool.find(None, one, SECOND) is None


def test_the_first_of_two_equal_blocks_is_found() -> None:
    pool = BlockPool(2)
    one, two = pool.allocate(2)
    pool.publish(one, None, None, FIRST)
    pool.publish(two, None, None, FIRST)
    assert pool.find(None, None, FIRST) == one
    assert not pool.is_published(two)
    pool.check([array("i", [one, two])])


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

    @rule(table=tables, root=st.sampled_from("ab"), first=st.integers(0, 2))
    def publish(self, table: array[int], root: str, first: int) -> None:
        before = None
        for block in table:
            self.pool.publish(block, root, before, tuple(range(first, first + BLOCK_TOKENS)))
            if not self.pool.is_published(block):
                break
            before = block

    @rule(table=consumes(tables))
    def end(self, table: array[int]) -> None:
        self.pool.release(table)
        self.held = [other for other in self.held if other is not table]

    @rule(target=tables, root=st.sampled_from("ab"), first=st.integers(0, 2))
    def find(self, root: str, first: int) -> array[int]:
        block = self.pool.find(root, None, tuple(range(first, first + BLOCK_TOKENS)))
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
        pool.publish(block, block, None, FIRST)
    pool.release(held)
    pool.clear_cache()
    assert pool.num_free == 10
    assert all(pool.find(block, None, FIRST) is None for block in blocks)
