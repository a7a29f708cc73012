"""A client's connection: uvicorn's protocol, with bounds on what comes before anybody has been asked for a key, and on
what nobody fetches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits

MOST_HEAD_BYTES = 1 << 16
MOST_PIPELINED = 64
"""Requests that a client may send before it has its answer to the first."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection on which a request's head (its address and headers) is too large or too slow, or no HTTP.

    What follows a request's body (HTTP's trailers) is bounded likewise. It also ends one whose client has stopped to
    read: while an answer waits for that, or after the answer's end. `request.state.abort()` closes it at once, whether
    or not the client has read what there is for it.
    """

    limits: ClassVar[Limits]
    count_error: ClassVar[Callable[[int], None]]
    """Called with the status of each refusal."""

    _deadline: asyncio.TimerHandle | None = None
    _num_bytes = 0  # since a request or a piece of its body began; what came in one piece with that is not counted
    _is_in_head = False
    _fetching: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        if self._fetching is not None:
            self._fetching.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > MOST_HEAD_BYTES:
            self._refuse(ApiError(431, f"the address and the headers have more than {MOST_HEAD_BYTES:,} bytes"))
        elif len(self.pipeline) > MOST_PIPELINED:
            self._refuse(ApiError(429, f"more than {MOST_PIPELINED} requests wait on this connection"))
        elif self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def on_message_begin(self) -> None:
        self._num_bytes, self._is_in_head = 0, True
        super().on_message_begin()
        self.scope["state"] = self.scope.get("state", {}) | {"abort": self.transport.abort}

    def on_headers_complete(self) -> None:
        self._num_bytes, self._is_in_head = 0, False
        self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_fetching()
        if self._is_in_head and self._deadline is None:  # it has begun while the last request was answered
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_fetching()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where a request cannot be read."""
        self._refuse(ApiError(400, msg))

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.limits.head_s, self._head_is_late)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_is_late(self) -> None:
        if self._is_in_head:
            self._refuse(ApiError(408, f"the headers have not arrived within {self.limits.head_s:g} s"))
        else:  # nothing has been asked
            self.transport.abort()

    def _expect_fetching(self) -> None:
        """From now on nothing is written until the client has read some of what there is."""
        if self._fetching is not None:
            self._fetching.cancel()
            self._fetching = None
        if num_unsent := self.transport.get_write_buffer_size():
            self._fetching = self.loop.call_later(self.limits.send_s, self._check_fetching, num_unsent)

    def _check_fetching(self, num_unsent: int) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused
        if self.transport.get_write_buffer_size() < num_unsent or is_answering:
            self._expect_fetching()
        else:
            type(self).count_error(408)
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Count an error, and close the connection; say why, unless that would be taken for a part of an answer."""
        if self.transport.is_closing():
            return
        type(self).count_error(error.status)
        cycle = self.cycle
        is_awaited = cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        if is_awaited and not self.pipeline:
            body = orjson.dumps(error.as_openai())
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()
        self._expect_fetching()
