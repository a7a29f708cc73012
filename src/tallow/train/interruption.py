"""Ctrl-C and `kill`: a wish that is heard between two steps, or two rounds of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether someone has asked to stop."""

    requested = False


@contextmanager
def listening(until: str = "step") -> Iterator[Interruption]:
    """Within this block the first SIGINT or SIGTERM is only noted; the second stops the program at once.

    In a thread other than the main one, where Python takes no signals, nothing is noted.

    Args:
        until: What is done first, as the user is told.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True
        # a handler may run in the midst of a print, so it must not print by itself
        os.write(2, f"\nstopping after this {until} (once more: at once)\n".encode())

    earlier = [signal.signal(number, note) for number in SIGNALS]
    try:
        yield interruption
    finally:
        for number, handler in zip(SIGNALS, earlier, strict=True):
            signal.signal(number, handler)
