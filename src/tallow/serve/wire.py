"""Messages between the server's front and its engine processes: JSON over a pair of sockets, its length first."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

LENGTH = struct.Struct(">I")
RECEIVED_AT_ONCE = 1 << 18
PAUSE_S, BURST_S = 0.001, 0.02
"""A burst of messages ends with a pause of the one, or after the other. Were the first of several requests computed at
once, it would have all cores to itself, and the front prepare the others ever more slowly."""


class Update(NamedTuple):
    """What one answer has grown by; sent as a list.

    Args:
        job: The number that the front has given.
        choice: Which of its answers.
        ids, text: New tokens, and as much text as may be shown.
        finish_reason: As of a request; None while it goes on.
        log_probs, top_log_probs: Of the new tokens, if asked for.
        prompt_log_probs, prompt_top_log_probs: Of the prompt, if asked for; with an answer's first update.
        cached_tokens: Of the prompt, found in the cache.
        error: What has ended it.
        stopped_by: The stop string that has ended it, if one has.
        embedding: Of the prompt, if that was asked for; with the last update.
    """

    job: int
    choice: int
    ids: list[int]
    text: str
    finish_reason: str | None = None
    log_probs: Sequence[float] = ()
    top_log_probs: Sequence[Sequence[tuple[int, float]]] = ()
    prompt_log_probs: Sequence[float] = ()
    prompt_top_log_probs: Sequence[Sequence[tuple[int, float]]] = ()
    cached_tokens: int = 0
    error: dict[str, str] | None = None
    stopped_by: str | None = None
    embedding: list[float] | None = None


def join_updates(updates: Sequence[Update]) -> Update:
    """All that one answer has grown by while it was not looked at, as one."""
    if len(updates) == 1:
        return updates[0]
    first = updates[0]  # which alone tells of the prompt
    return updates[-1]._replace(
        ids=[token for update in updates for token in update.ids],
        text="".join(update.text for update in updates),
        log_probs=[value for update in updates for value in update.log_probs],
        top_log_probs=[top for update in updates for top in update.top_log_probs],
        prompt_log_probs=first.prompt_log_probs,
        prompt_top_log_probs=first.prompt_top_log_probs,
    )


class Closed(Exception):
    """The other side has gone."""


class Connection:
    """The engine's end: but for `receive`, if it is to wait, nothing blocks: a busy front never holds up a step."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.setblocking(False)
        self._received, self._unsent = bytearray(), bytearray()

    def send(self, message: Any) -> None:
        """Send a message as far as it can be taken now; the rest goes with the next `send` or `receive`.

        Raises:
            Closed: Nobody is there.
        """
        self._unsent += _frame(message)
        self._flush()

    def receive(self, *, wait_s: float | None = None) -> Iterator[Any]:
        """The messages that have arrived.

        Args:
            wait_s: If there are none, so long at most; None: until there are some.

        Raises:
            Closed: Nobody is there.
        """
        while True:
            unsent = [self._end] if self._unsent else []
            readable, writable, _ = select.select([self._end], unsent, [], wait_s)
            if writable:
                self._flush()
            if readable:
                self._read()
                if messages := list(_unframe(self._received)):
                    yield from messages
                    return
            elif wait_s is not None and not writable:
                return

    def receive_now(self) -> Iterator[Any]:
        """The messages that have arrived, if there are some; raises as `receive` does."""
        return self.receive(wait_s=0.0)

    def receive_burst(self) -> Iterator[Any]:
        """The next message and those that follow at once; raises as `receive` does."""
        yield from self.receive()
        end = time.monotonic() + BURST_S
        while time.monotonic() < end:
            following = list(self.receive(wait_s=PAUSE_S))
            if not following:
                return
            yield from following

    def _read(self) -> None:
        try:
            data = self._end.recv(RECEIVED_AT_ONCE)
        except OSError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._received += data

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            raise Closed from error


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message, at the front's end.

    Raises:
        Closed: The engine process has gone.
    """
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return orjson.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise Closed from error


def write_message(writer: asyncio.StreamWriter, message: Any) -> None:
    """Send a message from the front's end."""
    writer.write(_frame(message))


def _frame(message: Any) -> bytes:
    body = orjson.dumps(message, default=tuple)
    return LENGTH.pack(len(body)) + body


def _unframe(received: bytearray) -> Iterator[Any]:
    """Take whole messages from the beginning of what was received."""
    while len(received) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(received)
        end = LENGTH.size + length
        if len(received) < end:
            return
        body = bytes(received[LENGTH.size : end])
        del received[:end]
        yield orjson.loads(body)
