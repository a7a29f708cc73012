"""A service whose answers are written down beforehand: what no tiny model says by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.types import Message

from tallow.serve.answers import Delta, Question
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream
from tallow.serve.settings import Limits, ModelSettings, ServeSettings
from tallow.serve.tools import ToolCallDelta
from tallow.serve.wire import Update


def says(text: str, *calls: ToolCallDelta, end: str | None = None) -> Delta:
    """An answer grows by this."""
    return Delta(0, text, list(calls), Update(1, 0, [1], text), end)


class ScriptedService:
    """Stands for a `Service`.

    Args:
        deltas: What it answers.
        error: How its answer ends, if not well.
    """

    name, num_prompt_tokens, cached_tokens = "tiny", 7, 3

    def __init__(self, deltas: Sequence[Delta], error: ApiError | None = None) -> None:
        self.settings = ServeSettings(models={"tiny": ModelSettings(path="tiny")}, limits=Limits())
        self.num_tokens = 0
        self._deltas, self._error = deltas, error

    @asynccontextmanager
    async def answer(self, question: Question) -> AsyncIterator[ScriptedService]:
        assert question.messages
        yield self

    async def deltas(self) -> AsyncIterator[Delta]:
        for delta in self._deltas:
            self.num_tokens += len(delta.piece.ids)
            yield delta
        if self._error is not None:
            raise self._error


async def sent(stream: EventStream, count_error: Callable[[int], None] = lambda _status: None) -> bytes:
    """The body of a response to a client that stays."""
    body = b""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal body
        body += message.get("body", b"")

    await stream({"type": "http", "path": "/", "state": {"count_error": count_error}}, receive, send)
    return body


def events_of(sent: bytes) -> list[dict[str, Any]]:
    """Named server-sent events; the name is the data's type."""
    found = []
    for event in sent.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found
