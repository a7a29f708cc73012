"""What runs on Ray Serve: a whole server, but for listening and keys, which are the front's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
from ray import serve
from starlette.types import Message, Scope

from tallow.serve.app import make_app
from tallow.serve.errors import ApiError
from tallow.serve.http import Keys
from tallow.serve.service import Service
from tallow.serve.settings import ServeSettings

USER_HEADER = b"x-tallow-user"
"""Tells a replica whom the front has let in; what a client says there is not passed on."""
KEY_HEADERS = (b"authorization", b"x-api-key")


class Replica:
    """The whole server in a process of Ray's, but for listening.

    Args:
        settings: Of the server, as JSON.
        sharing: How many replicas share this machine's processors, if the settings name no number of threads.
    """

    def __init__(self, settings: str, sharing: int) -> None:
        parsed = ServeSettings.model_validate_json(settings)
        threads = parsed.threads or max(1, (os.cpu_count() or 1) // sharing)
        self._service = Service(parsed.model_copy(update={"threads": threads}))
        self._app = make_app(self._service, KeysOfFront())
        self._name = serve.get_replica_context().replica_id.unique_id
        self._stack: AsyncExitStack | None = None

    async def check_health(self) -> None:
        """Ray replaces a replica for which this fails. At first the model is loaded: no request comes before.

        Raises:
            ApiError: The model cannot be loaded, or can no longer answer.
        """
        if self._stack is None:
            self._stack = AsyncExitStack()
            await self._stack.enter_async_context(self._service.running())
            await next(iter(self._service.engines.values())).ready()
        if self._service.health == "dead":
            raise ApiError(503, "a model of this replica cannot answer")

    async def __del__(self) -> None:
        """Ray waits for it."""
        if self._stack is not None:
            await self._stack.aclose()

    async def answer(self, head: bytes, body: bytes, _names: Sequence[bytes] = ()) -> AsyncIterator[bytes]:
        """Answer a request: the head of the answer as JSON, then its body in pieces.

        Args:
            head, body: Of the request; the head as `request_head` makes it.
            _names: Of its beginnings, for `PrefixRouter`.
        """
        pieces: list[bytes] = []
        news, left = asyncio.Event(), asyncio.Event()
        is_given = False

        async def receive() -> Message:
            nonlocal is_given
            if is_given:
                await left.wait()
                return {"type": "http.disconnect"}
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            is_head = message["type"] == "http.response.start"
            pieces.append(self._answer_head(message) if is_head else message.get("body", b""))
            news.set()

        task = asyncio.create_task(self._app(_scope(head), receive, send))
        task.add_done_callback(lambda _task: news.set())
        is_begun = False
        try:
            while pieces or not task.done():
                await news.wait()
                news.clear()
                if pieces and not is_begun:
                    is_begun = True
                    yield pieces.pop(0)
                piece = b"".join(pieces)  # what has come up since the last is sent as one
                pieces.clear()
                if piece:
                    yield piece
            task.result()
        finally:
            left.set()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def whole(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """As `answer`, at once."""
        first, *pieces = [piece async for piece in self.answer(head, body)]
        return first, b"".join(pieces)

    def _answer_head(self, message: Message) -> bytes:
        headers = [*message["headers"], (b"x-replica", self._name.encode())]
        return _head({"replica": self._name, "status": message["status"], "headers": headers})


class KeysOfFront(Keys):
    """Whom the front has let in has shown a key there."""

    def __init__(self) -> None:
        super().__init__({}, None)

    @property
    def are_wanted(self) -> bool:
        """The front has asked for them, and for whom the request was meant."""
        return True

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> str | None:  # noqa: ARG002
        user = headers.get(USER_HEADER)
        return user.decode() if user is not None else None


def request_head(scope: Mapping[str, Any]) -> bytes:
    """A request without its body, as a replica is told, with the name of who asks in place of the key."""
    headers = [(name, value) for name, value in scope["headers"] if name not in (USER_HEADER, *KEY_HEADERS)]
    if (user := scope["state"]["user"]) is not None:
        headers.append((USER_HEADER, user.encode()))
    return _head({**{name: scope[name] for name in ("method", "path", "query_string")}, "headers": headers})


def _head(fields: Mapping[str, Any]) -> bytes:
    """As JSON, with what are bytes in ASGI as text."""
    return orjson.dumps(fields, default=lambda value: value.decode("latin-1"))


def _scope(head: bytes) -> Scope:
    request = orjson.loads(head)
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request["method"],
        "path": request["path"],
        "query_string": request["query_string"].encode("latin-1"),
        "headers": raw_headers(request["headers"]),
    }


def raw_headers(headers: Iterable[Sequence[str]]) -> list[tuple[bytes, bytes]]:
    """As ASGI has them, from those of an answer's head."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
