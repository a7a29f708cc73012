"""A client's connection: uvicorn's protocol, with bounds on what comes before anybody has been asked for a key."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 1 << 16
MOST_PIPELINED = 64
"""Requests that a client may send before it has its answer to the first."""
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection on which a request's head (its address and headers) is too large or too slow.

    What follows a request's body (HTTP's trailers) is bounded likewise. `request.state.abort()` closes it at once,
    whether or not the client has read what there is for it.
    """

    head_s: ClassVar[float]
    """Seconds from connecting, or from a later request's first byte, until a head must have arrived."""

    _deadline: asyncio.TimerHandle | None = None
    _num_bytes = 0  # since a request or a piece of its body began; what came in one piece with that is not counted

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        super().data_received(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._num_bytes > MOST_HEAD_BYTES or len(self.pipeline) > MOST_PIPELINED:
            if is_idle:  # else it would be taken for a part of what is being answered
                self.transport.write(TOO_LARGE)
            self.transport.close()
        elif is_idle and self._deadline is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        self._num_bytes = 0
        super().on_message_begin()
        self.scope["state"] = self.scope.get("state", {}) | {"abort": self.transport.abort}

    def on_headers_complete(self) -> None:
        self._num_bytes = 0
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_bytes = 0
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_s, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
