"""Things that are taken together as far as there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def grouped(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Items that follow one another and are together no larger than `most`, or single ones."""
    group: list[Item] = []
    filled = 0
    for item in items:
        length = size(item)
        if group and filled + length > most:
            yield group
            group, filled = [], 0
        group.append(item)
        filled += length
    if group:
        yield group
