"""What a process makes once and keeps, however many of its threads ask for it at the same time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def once(most: int = 1) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Have a function keep its latest results, by their (hashable) arguments.

    `functools.lru_cache` lets two threads that miss at the same time both make the value: twice the memory of a model,
    and a table that only one of them keeps while the other has its address.

    Args:
        most: How many results are kept.
    """

    def keeping(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        kept, lock = functools.lru_cache(maxsize=most)(function), threading.RLock()

        @functools.wraps(function)
        def ask(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with lock:
                return kept(*args, **kwargs)  # pyright: ignore[reportArgumentType]

        return ask

    return keeping
