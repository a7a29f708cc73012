"""Where in the cache one sequence is: a table of blocks for each group of layers.

Layers that see all of a sequence and layers that see a window of it need different blocks, so each group of layers has
a table of its own; blocks of all groups are of one size and come from one pool. Groups with a window let go of what
they will not see again.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tallow.engine.blocks import BLOCK_TOKENS, NO_BLOCK, BlockPool, Name
from tallow.models.config import DecoderConfig

Copy = tuple[int, int]
"""The content of the first block has to be copied to the second."""


@dataclass(frozen=True)
class CacheLayout:
    """How the layers of a model share the blocks of the cache.

    Args:
        windows: For each table of a sequence how many tokens its layers see; None for all. Those that see all come
            first.
        places: For each layer its table, and its place among the layers of a block.
        depth: Layers of a block.
    """

    windows: tuple[int | None, ...]
    places: tuple[tuple[int, int], ...]
    depth: int

    @staticmethod
    def of(config: DecoderConfig, longest: int) -> CacheLayout:
        """Layers with the same window share tables; a block has as many layers as the smallest group.

        Args:
            config: The model.
            longest: Its longest sequence in tokens; a window that holds all of it is none.
        """
        groups: dict[int | None, list[int]] = {}
        for layer in range(config.num_layers):
            window = config.layer_window(layer)
            groups.setdefault(window if window is not None and window < longest else None, []).append(layer)
        depth = min(map(len, groups.values()))
        windows: list[int | None] = []
        places = [(0, 0)] * config.num_layers
        for window in sorted(groups, key=lambda window: (window is not None, window)):
            for index, layer in enumerate(groups[window]):
                places[layer] = len(windows) + index // depth, index % depth
            windows += [window] * -(-len(groups[window]) // depth)
        return CacheLayout(tuple(windows), tuple(places), depth)

    def blocks_needed(self, num_tokens: int, step_tokens: int) -> int:
        """Most blocks that a sequence holds until it has so many tokens, if a step computes `step_tokens` at most."""
        all_blocks = _blocks(num_tokens)
        return sum(
            all_blocks if window is None else min(all_blocks, _blocks(window + step_tokens) + 1)
            for window in self.windows
        )


class BlockTables:
    """The blocks of one sequence.

    Args:
        pool: Where they come from.
        layout: The groups of layers.
        root: What else than its tokens the sequence's keys and values depend on, or must not be shared across:
            sequences share blocks only if it is equal.
    """

    def __init__(self, pool: BlockPool, layout: CacheLayout, root: Hashable = None) -> None:
        self.tables = [array("i") for _ in layout.windows]
        self._pool, self._layout, self._root = pool, layout, root
        self._names: list[Name] = []  # of the published blocks of the first table
        self._let_go = [0] * len(self.tables)

    def missing(self, start: int, end: int) -> int:
        """How many blocks have to be free before the tokens from `start` up to `end` can be written."""
        new = max(0, _blocks(end) - len(self.tables[0]))
        return len(self.tables) * new + len(self._shared_tables(start))

    def prepare(self, start: int, end: int) -> list[Copy]:
        """Take the blocks for these tokens; one that others hold, too, is replaced by a copy before it is written."""
        copies: list[Copy] = []
        for table in self._shared_tables(start):
            shared, [own] = table[start // BLOCK_TOKENS], self._pool.allocate(1)
            copies.append((shared, own))
            table[start // BLOCK_TOKENS] = own
            self._pool.release([shared])
        count = _blocks(end)
        for table in self.tables:
            if count > len(table):
                table.extend(self._pool.allocate(count - len(table)))
        return copies

    def share(self, other: BlockTables, num_tokens: int) -> None:
        """Hold the same blocks for the first tokens as another sequence of the same pool does, and none else."""
        count, before = _blocks(num_tokens), self.tables
        self.tables = [table[:count] for table in other.tables]
        self._names, self._let_go = other._names[: num_tokens // BLOCK_TOKENS], list(other._let_go)
        for table in self.tables:
            self._pool.share(table)
        for table in before:
            self._pool.release(table)

    def release(self) -> None:
        """Hold no blocks any more."""
        for table in self.tables:
            self._pool.release(table)
            del table[:]
        self._names.clear()
        self._let_go = [0] * len(self.tables)

    def let_go_unseen(self, num_computed: int) -> None:
        """Free the blocks that are outside the window of every token to come."""
        for index, window in enumerate(self._layout.windows):
            table, end = self.tables[index], _first_seen(num_computed, window)
            if end > self._let_go[index]:
                self._pool.release(table[self._let_go[index] : end])
                table[self._let_go[index] : end] = array("i", [NO_BLOCK]) * (end - self._let_go[index])
                self._let_go[index] = end

    def publish(self, tokens: Sequence[int], num_computed: int) -> None:
        """Let the blocks that have become full be found by sequences with the same beginning."""
        for index in range(len(self._names), num_computed // BLOCK_TOKENS):
            name = self._pool.publish(self.tables[0][index], self._key(tokens, index, self._names))
            self._names.append(name)
            for table, blocks in enumerate(self.tables[1:], start=1):
                self._pool.publish(blocks[index], (table, name))

    def find(self, tokens: Sequence[int]) -> tuple[list[Name], list[list[int]]]:
        """The names of what the cache has of the sequence's first tokens, and for each table the blocks.

        The last token is never among them: it has to be computed for its logits.
        """
        names: list[Name] = []
        found: list[list[int]] = [[] for _ in self.tables]
        for index in range((len(tokens) - 1) // BLOCK_TOKENS):
            block = self._pool.find(self._key(tokens, index, names))
            if block is None:
                break
            found[0].append(block)
            names.append(self._pool.name(block))
        for table in range(1, len(self.tables)):
            others = (self._pool.find((table, name)) for name in names)
            found[table] = [NO_BLOCK if block is None else block for block in others]
        return self._all_seen(names, found)

    def reuse(self, tokens: Sequence[int]) -> int:
        """Hold what `find` finds; returns of how many tokens that is the cache. There are no blocks held before."""
        self._names, found = self.find(tokens)
        for table, blocks in zip(self.tables, found, strict=True):
            table.extend(blocks)
            self._pool.share(blocks)
        num_tokens = len(self._names) * BLOCK_TOKENS
        self._let_go = [_first_seen(num_tokens, window) for window in self._layout.windows]
        return num_tokens

    def _all_seen(self, names: list[Name], found: list[list[int]]) -> tuple[list[Name], list[list[int]]]:
        """So much of what was found that nothing is missing which the next token sees, without what it does not."""
        count = len(names)
        while True:
            firsts = [_first_seen(count * BLOCK_TOKENS, window) for window in self._layout.windows]
            holes = [
                index
                for blocks, first in zip(found, firsts, strict=True)
                for index in range(first, count)
                if blocks[index] == NO_BLOCK
            ]
            if not holes:
                return names[:count], [
                    [NO_BLOCK] * first + blocks[first:count] for blocks, first in zip(found, firsts, strict=True)
                ]
            count = max(holes)

    def _shared_tables(self, start: int) -> list[array[int]]:
        """The tables whose block that begins before `start` and is not full has other holders."""
        index = start // BLOCK_TOKENS
        if start % BLOCK_TOKENS == 0 or index >= len(self.tables[0]):
            return []
        is_shared = self._pool.is_shared
        return [table for table in self.tables if is_shared(table[index])]

    def _key(self, tokens: Sequence[int], index: int, names: Sequence[Name]) -> Hashable:
        """What the first table's block is the cache of: its tokens, after what came before. Compared token by token."""
        before = ("root", self._root) if index == 0 else names[index - 1]
        return before, tuple(tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def _first_seen(position: int, window: int | None) -> int:
    """The first block of which the token at this position, or one after it, sees anything."""
    return 0 if window is None else max(0, position + 1 - window) // BLOCK_TOKENS
