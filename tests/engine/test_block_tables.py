"""Tables of blocks: what a sequence sees in the cache is what was computed for it, whoever else writes there."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from tests.engine.conftest import make_model, tiny

from tallow.engine.block_tables import BlockTables, CacheLayout
from tallow.engine.blocks import BLOCK_TOKENS, NO_BLOCK, BlockPool
from tallow.engine.engine import Engine
from tallow.engine.request import RequestState, SamplingParams
from tallow.engine.torch_runner import TorchRunner

STEP_TOKENS = 24


def layout(*windows: int | None) -> CacheLayout:
    """One layer for each of these windows."""
    return CacheLayout(windows, tuple((table, 0) for table in range(len(windows))), 1)


def sliding(pattern: str, window: int = 8) -> CacheLayout:
    """The layout of a model with a letter for each layer: `f` sees all, `w` a window."""
    config = tiny(num_layers=len(pattern), window=window, sliding_layers=tuple(letter == "w" for letter in pattern))
    return CacheLayout.of(config, config.max_positions)


def test_layers_that_see_all_share_one_table() -> None:
    one = CacheLayout.of(tiny(num_layers=4), 96)
    assert one == CacheLayout((None,), ((0, 0), (0, 1), (0, 2), (0, 3)), 4)
    assert one.blocks_needed(33, 8) == 3


def test_layers_with_a_window_share_one_table() -> None:
    one = CacheLayout.of(tiny(num_layers=2, window=8), 96)
    assert one == CacheLayout((8,), ((0, 0), (0, 1)), 2)
    assert [one.blocks_needed(tokens, 8) for tokens in (1, 32, 33, 96)] == [1, 2, 2, 2]


def test_a_window_that_holds_everything_is_none() -> None:
    assert CacheLayout.of(tiny(window=96), 96).windows == (None,)
    assert CacheLayout.of(tiny(window=95), 96).windows == (95,)


@pytest.mark.parametrize(
    ("pattern", "windows", "places", "depth"),
    [
        ("fwfw", (None, 8), [(0, 0), (1, 0), (0, 1), (1, 1)], 2),
        ("wwwwwf", (None, 8, 8, 8, 8, 8), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (0, 0)], 1),
        # blocks of two layers; the last table of those with a window has one layer only
        ("wfwwfw w".replace(" ", ""), (None, 8, 8, 8), [(1, 0), (0, 0), (1, 1), (2, 0), (0, 1), (2, 1), (3, 0)], 2),
        ("ffw", (None, None, 8), [(0, 0), (1, 0), (2, 0)], 1),
    ],
)
def test_groups_of_layers(
    pattern: str, windows: tuple[int | None, ...], places: list[tuple[int, int]], depth: int
) -> None:
    found = sliding(pattern)
    assert (found.windows, list(found.places), found.depth) == (windows, places, depth)
    assert len(set(found.places)) == len(pattern)


def grow(tables: BlockTables, tokens: list[int], end: int) -> None:
    """Compute the tokens up to `end`, a step's at a time."""
    for start in range(0, end, STEP_TOKENS):
        stop = min(start + STEP_TOKENS, end)
        tables.prepare(start, stop)
        tables.publish(tokens, stop)
        tables.let_go_unseen(stop)


def test_blocks_are_taken_shared_and_copied_when_written() -> None:
    pool = BlockPool(8)
    one, other = BlockTables(pool, layout(None, 5)), BlockTables(pool, layout(None, 5))
    assert one.missing(0, 20) == 4
    assert one.prepare(0, 20) == []
    before = [table[:] for table in one.tables]
    other.share(one, 20)
    assert other.tables == before
    assert pool.num_free == 4
    assert other.missing(20, 21) == 2  # a copy for each table
    assert other.missing(20, 33) == 2 + 2
    copies = other.prepare(20, 21)
    assert copies == [(table[1], own[1]) for table, own in zip(before, other.tables, strict=True)]
    assert [table[0] for table in other.tables] == [table[0] for table in before]
    assert one.tables == before
    assert one.prepare(20, 21) == []  # nobody else holds them any more
    pool.check([*one.tables, *other.tables])
    for tables in (one, other):
        tables.release()
    assert pool.num_free == 8


def test_sharing_gives_up_what_was_held() -> None:
    pool = BlockPool(4)
    one, other = BlockTables(pool, layout(None)), BlockTables(pool, layout(None))
    one.prepare(0, 16)
    other.prepare(0, 20)
    other.share(one, 16)
    assert other.tables == one.tables
    assert pool.num_free == 3
    assert other.missing(16, 17) == 1
    assert other.prepare(16, 17) == []  # a new block is nobody else's


def test_a_full_block_that_others_hold_is_not_copied() -> None:
    pool = BlockPool(2)
    one, other = BlockTables(pool, layout(None)), BlockTables(pool, layout(None))
    one.prepare(0, 16)
    other.share(one, 16)
    assert other.missing(16, 17) == 1
    assert other.prepare(16, 17) == []


def test_what_is_out_of_the_window_is_let_go() -> None:
    pool = BlockPool(16)
    tables = BlockTables(pool, layout(None, 20))
    tables.prepare(0, 64)
    tables.let_go_unseen(35)  # the next token sees from position 16 on
    assert list(tables.tables[1])[:1] == [NO_BLOCK]
    assert NO_BLOCK not in [*tables.tables[0], *tables.tables[1][1:]]
    tables.let_go_unseen(35)
    tables.let_go_unseen(64)
    assert [block == NO_BLOCK for block in tables.tables[1]] == [True, True, False, False]
    pool.check(tables.tables)


@pytest.mark.parametrize("windows", [(None,), (20,), (None, 20), (None, 20, 20), (5, 20)])
def test_beginnings_are_found(windows: tuple[int | None, ...]) -> None:
    pool, tokens = BlockPool(32), [*range(100)]
    first = BlockTables(pool, layout(*windows))
    grow(first, tokens, 70)
    for count, found in [(64, 48), (65, 64), (100, 64), (33, 32), (16, 0)]:
        again = BlockTables(pool, layout(*windows))
        assert again.reuse(tokens[:count]) == found
        for window, table, computed in zip(windows, again.tables, first.tables, strict=True):
            seen = 0 if window is None else max(0, found + 1 - window) // BLOCK_TOKENS
            assert list(table[:seen]) == [NO_BLOCK] * seen
            assert NO_BLOCK not in table[seen:]
            assert len(table) == found // BLOCK_TOKENS
            assert all(block in (NO_BLOCK, mine) for block, mine in zip(computed, table, strict=False) if mine >= 0)
        pool.check([*first.tables, *again.tables])
        again.release()
    assert BlockTables(pool, layout(*windows)).reuse([99, *tokens[1:70]]) == 0
    assert BlockTables(pool, layout(*windows), "another root").reuse(tokens[:70]) == 0


def test_beginnings_are_found_only_if_all_that_is_seen_is_there() -> None:
    pool, tokens = BlockPool(12), [*range(100)]
    first = BlockTables(pool, layout(None, 20))
    grow(first, tokens, 80)
    first.release()
    others = BlockTables(pool, layout(None))
    # the table with the window let its first blocks go before all others: they are used anew first
    others.prepare(0, 4 * BLOCK_TOKENS)
    assert BlockTables(pool, layout(None, 20)).find(tokens[:33])[0] == []
    again = BlockTables(pool, layout(None, 20))
    assert again.reuse(tokens) == 80
    assert [block == NO_BLOCK for block in again.tables[1]] == [True, True, True, False, False]
    pool.check([*others.tables, *again.tables])


class Sequences(RuleBasedStateMachine):
    """Sequences that begin, grow, part, guess wrongly and end.

    A place of the cache holds the tokens up to the one that was written there: so it shows when something else is
    there than what a sequence has to see.
    """

    sequences = Bundle("sequences")

    @initialize(
        windows=st.sampled_from([(None,), (5,), (None, 20), (None, 20, 20), (17, 40)]), blocks=st.integers(6, 30)
    )
    def setup(self, windows: tuple[int | None, ...], blocks: int) -> None:
        self.layout, self.pool = layout(*windows), BlockPool(blocks)
        self.content: list[list[object]] = [[None] * BLOCK_TOKENS for _ in range(blocks)]
        self.held: list[Sequence] = []

    @rule(target=sequences, root=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=70))
    def begin(self, root: str, tokens: list[int]) -> Sequence:
        sequence = Sequence(BlockTables(self.pool, self.layout, root), root, tokens)
        sequence.num_computed = sequence.tables.reuse(tokens)
        assert sequence.num_computed < len(tokens)
        self.held.append(sequence)
        return sequence

    @rule(
        sequence=sequences,
        steps=st.lists(st.tuples(st.integers(1, STEP_TOKENS), st.integers(0, 4)), min_size=1, max_size=6),
    )
    def grow(self, sequence: Sequence, steps: list[tuple[int, int]]) -> None:
        for count, guesses in steps:
            self.step(sequence, count, guesses)
            self.all_that_is_seen_is_there()

    def step(self, sequence: Sequence, count: int, guesses: int) -> None:
        """Compute tokens, and behind them some that turn out wrong."""
        start, end = sequence.num_computed, sequence.num_computed + count
        sequence.tokens += [len(self.held) % 2] * max(0, end + 1 - len(sequence.tokens))
        past = min(end + guesses, start + STEP_TOKENS)
        missing = sequence.tables.missing(start, past)
        if missing > self.pool.num_free:
            return
        before = self.pool.num_free
        for source, target in sequence.tables.prepare(start, past):
            self.content[target] = list(self.content[source])
        assert before - self.pool.num_free == missing
        held = sum(block != NO_BLOCK for table in sequence.tables.tables for block in table)
        sequence.most_tokens = max(sequence.most_tokens, past)  # blocks taken for wrong guesses are kept
        assert held <= self.layout.blocks_needed(sequence.most_tokens, STEP_TOKENS)
        tokens = [*sequence.tokens[:end], *[9] * (past - end)]
        for index, table in enumerate(sequence.tables.tables):
            for position in range(start, past):
                value = (index, sequence.root, *tokens[: position + 1])
                self.content[table[position // BLOCK_TOKENS]][position % BLOCK_TOKENS] = value
        sequence.num_computed = end
        sequence.tables.publish(sequence.tokens, end)
        sequence.tables.let_go_unseen(end)

    @rule(target=sequences, sequence=sequences, token=st.integers(0, 1))
    def part(self, sequence: Sequence, token: int) -> Sequence:
        tables = BlockTables(self.pool, self.layout, sequence.root)
        tables.share(sequence.tables, sequence.num_computed)
        tokens = [*sequence.tokens[: sequence.num_computed], token]
        self.held.append(Sequence(tables, sequence.root, tokens, sequence.num_computed))
        return self.held[-1]

    @rule(sequence=consumes(sequences))
    def end(self, sequence: Sequence) -> None:
        sequence.tables.release()
        self.held = [other for other in self.held if other is not sequence]

    @rule(sequence=sequences)
    def preempt(self, sequence: Sequence) -> None:
        sequence.tables.release()
        sequence.num_computed = sequence.tables.reuse(sequence.tokens)

    @invariant()
    def books_agree(self) -> None:
        self.pool.check(table for sequence in self.held for table in sequence.tables.tables)

    @invariant()
    def all_that_is_seen_is_there(self) -> None:
        for sequence in self.held:
            for index, (table, window) in enumerate(zip(sequence.tables.tables, self.layout.windows, strict=True)):
                first = 0 if window is None else max(0, sequence.num_computed + 1 - window)
                for position in range(first, sequence.num_computed):
                    there = self.content[table[position // BLOCK_TOKENS]][position % BLOCK_TOKENS]
                    assert there == (index, sequence.root, *sequence.tokens[: position + 1])


class Sequence:
    """One sequence of the state machine."""

    def __init__(self, tables: BlockTables, root: str, tokens: list[int], num_computed: int = 0) -> None:
        self.tables, self.root, self.tokens, self.num_computed = tables, root, tokens, num_computed
        self.most_tokens = num_computed


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_windowed_sequence_holds_no_more_the_longer_it_gets() -> None:
    model = make_model(tiny(window=9, max_positions=320))
    engine = Engine(TorchRunner(model), None, max_tokens_per_step=8, max_running=2)
    most = engine.runner.layout.blocks_needed(320, 8)
    assert most == 3
    assert engine.state.num_blocks == 2 * most
    request = engine.submit(range(60), SamplingParams(max_new_tokens=240, ignore_eos=True))
    while request.state is not RequestState.FINISHED:
        engine.step()
        assert engine.state.num_blocks - engine.state.free_blocks <= most
    assert len(request.ids) == 240
    engine.check_blocks()


def test_a_reused_beginning_does_not_need_more_than_a_sequence_may_hold() -> None:
    """The cache has all of the prompt, but not all of its blocks may be held besides those that come next."""
    model = make_model(tiny(window=5))
    engine = Engine(TorchRunner(model), None, max_tokens_per_step=1, max_running=1)
    assert engine.state.num_blocks == 2
    answers = []
    for _ in range(2):
        request = engine.submit(range(32), SamplingParams(max_new_tokens=1))
        for _ in range(40):
            engine.step()
        answers.append(request.ids)
        longer = engine.submit(range(34), SamplingParams(max_new_tokens=1))
        for _ in range(40):
            engine.step()
        assert longer.state is RequestState.FINISHED
    assert answers[0] == answers[1]


def test_tables_are_arrays_of_int32() -> None:
    """The C++ decoder reads them as they are."""
    [table] = BlockTables(BlockPool(1), layout(None)).tables
    assert (table.typecode, table.itemsize) == ("i", 4)
    assert isinstance(table, array)
