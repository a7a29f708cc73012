"""The blocks of the key-value cache: who holds which, and which can be used again for the same tokens.

A block keeps the keys and values of 16 tokens. Sequences that begin with the same tokens share the blocks of these
(paged attention with prefix sharing: arXiv 2309.06180). A block that nobody holds keeps its content until it is needed
for something else, the one that was let go first before the others.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

BLOCK_TOKENS = 16

Name = int
"""Stands for all tokens of a sequence up to the end of a published block. Names are not used twice."""

NO_NAME: Name = 0
NO_BLOCK = -1
"""In a table: a block that its sequence has let go, since none of its tokens will be seen again."""


class BlockPool:
    """Hands out blocks and takes them back.

    Args:
        num_blocks: How many there are.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._keys: list[Hashable] = [None] * num_blocks
        self._names = [NO_NAME] * num_blocks
        self._cached: dict[Hashable, int] = {}
        self._free = OrderedDict.fromkeys(range(num_blocks))
        self._last_name = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Blocks for one holder; what they were the cache of is forgotten. There must be so many free."""
        assert count <= len(self._free)
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._holders[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these."""
        for block in blocks:
            if block == NO_BLOCK:
                continue
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each of these; the last ones will be used anew first, as fewer share them."""
        for block in reversed(blocks):
            if block == NO_BLOCK:
                continue
            self._holders[block] -= 1
            assert self._holders[block] >= 0
            if self._holders[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def is_shared(self, block: int) -> bool:
        """Whether writing into it would change what another holder sees."""
        return self._holders[block] > 1

    def publish(self, block: int, key: Hashable) -> Name:
        """Let a full block be found by those who look for the same.

        Args:
            block: The block.
            key: What it is the cache of: all that its content depends on, and compared by value.

        Returns:
            The name of what can be found under this key: this block's, or that of another that was there before.
        """
        if (
            found := self._cached.get(key)
        ) is not None:  # another sequence was quicker; its copy will do for later ones
            return self._names[found]
        if self._keys[block] is None:
            self._last_name += 1
            self._keys[block], self._names[block], self._cached[key] = key, self._last_name, block
        return self._names[block]

    def find(self, key: Hashable) -> int | None:
        """The block that was published under this key."""
        return self._cached.get(key)

    def name(self, block: int) -> Name:
        """The name of a published block."""
        return self._names[block]

    def clear_cache(self) -> None:
        """Forget what free blocks are the cache of."""
        for block in self._free:
            self._forget(block)

    def check(self, held: Iterable[array[int]]) -> None:
        """Whether the books agree with the tables of all sequences.

        Raises:
            AssertionError: They do not.
        """
        holders = [0] * self.num_blocks
        for table in held:
            for block in table:
                if block != NO_BLOCK:
                    holders[block] += 1
        assert holders == self._holders, "holders of cache blocks are miscounted"
        free = {block for block, count in enumerate(holders) if count == 0}
        assert free == set(self._free), "free cache blocks are lost or held"
        for key, block in self._cached.items():
            assert self._keys[block] == key, "a cache block is found under a key that is not its own"

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._cached[key]
            self._keys[block] = None
