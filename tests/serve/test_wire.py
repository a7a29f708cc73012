"""Messages as they reach an engine's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tallow.serve.wire import BURST_S, PAUSE_S, Closed, Connection


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    first, second = socket.socketpair()
    with first, second:
        yield Connection(first), Connection(second)


def send_slowly(connection: Connection, number: int, pause_s: float) -> threading.Thread:
    def send() -> None:
        for index in range(number):
            connection.send(index)
            end = time.perf_counter() + pause_s
            while time.perf_counter() < end:  # a sleep would be longer
                pass

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_what_follows_at_once_belongs_to_a_burst(ends: tuple[Connection, Connection]) -> None:
    front, engine = ends
    assert list(engine.receive_now()) == []
    sending = send_slowly(front, 4, PAUSE_S / 10)
    assert list(engine.receive_burst()) == [0, 1, 2, 3]
    sending.join()


def test_a_burst_ends_though_messages_go_on(ends: tuple[Connection, Connection]) -> None:
    front, engine = ends
    sending = send_slowly(front, 100, PAUSE_S / 2)
    begin = time.monotonic()
    some = list(engine.receive_burst())
    assert time.monotonic() - begin < BURST_S + 0.5
    rest: list[int] = []
    while len(some) + len(rest) < 100:
        rest += engine.receive()
    sending.join()
    assert some + rest == list(range(100))


def test_who_has_gone_is_told(ends: tuple[Connection, Connection]) -> None:
    front, engine = ends
    front.send("last")
    front._end.close()
    received = engine.receive_burst()
    assert next(received) == "last"
    with pytest.raises(Closed):
        list(received)
