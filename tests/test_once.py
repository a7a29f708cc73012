"""What is made once is made once, and kept, whoever asks at the same time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tallow.kernels.text.classes import character_tables
from tallow.once import once


def test_threads_that_ask_at_the_same_time_get_the_same_thing() -> None:
    made: list[int] = []

    @once()
    def slow(number: int) -> list[int]:
        made.append(number)
        time.sleep(0.05)
        return [number]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(slow, [7] * 8))
    assert made == [7]
    assert all(each is found[0] for each in found)


def test_as_many_are_kept_as_was_said() -> None:
    made: list[int] = []
    kept = once(most=2)(lambda number: made.append(number))
    for number in (1, 2, 1, 3, 1, 2):
        kept(number)
    assert made == [1, 2, 3, 2]


def test_what_fails_is_tried_again() -> None:
    tries: list[int] = []

    @once()
    def fails_at_first() -> int:
        tries.append(0)
        if len(tries) == 1:
            raise OSError("not yet")
        return 5

    with pytest.raises(OSError, match="not yet"):
        fails_at_first()
    assert fails_at_first() == 5


def test_a_process_has_one_table_of_characters() -> None:
    assert character_tables() is character_tables()
