"""What FastAPI does not do for a server that strangers may reach: bounded bodies, keys, clients that leave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallow.errors import DataError, UsageError, reading
from tallow.serve.errors import ApiError
from tallow.serve.request_log import Caller, caller
from tallow.serve.settings import Limits

OPEN_PATHS = frozenset({"/health"})
ADMIN_PATHS = ("/admin/",)
PAGE_PATH = "/"
"""Where a browser may ask for the key: on any other path it would ask in the midst of a conversation."""
CONVERSATION_HEADER = b"x-conversation"
MOST_CONVERSATION_BYTES = 64
Result = TypeVar("Result")


class Json(Response):
    """An object as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class StrictRequest(Request):
    """Its body is JSON as other programs can read it, too: no half surrogate pairs, no NaN, not nested too deeply."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body cannot be read: {error}") from error


class StrictRoute(APIRoute):
    """A route for such requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def error_response(error: ApiError, scope: Scope) -> Json:
    """An error, which is counted, in the words of the API that the path belongs to."""
    path: str = scope["path"]
    scope["state"]["count_error"](error.status)
    body = error.as_anthropic() if path.startswith("/v1/messages") else error.as_openai()
    challenge = {"WWW-Authenticate": 'Basic realm="tallow", charset="UTF-8"'}
    asks = error.status == 401 and path == PAGE_PATH
    return Json(body, error.status, error.headers | (challenge if asks else {}))


class EventStream(Response):
    """Server-sent events, which end when the client leaves.

    The first event is waited for before anything is sent: so what cannot be answered at all is told by the status.

    Args:
        events: What is sent, each whole.
        tell: How an error after the first event is told.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], tell: Callable[[ApiError], bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._tell = events, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):  # wherever it was when the client left
                await while_client_stays(receive, self._send(scope, receive, send))
        except TimeoutError:  # the deadline has passed while the client did not read: nothing more can be told
            scope["state"]["count_error"](408)
            scope["state"]["abort"]()
            await _disconnected(receive)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await anext(self._events, b"")
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            while body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = await anext(self._events, b"")
        except ApiError as error:
            scope["state"]["count_error"](error.status)
            await send({"type": "http.response.body", "body": self._tell(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event is not None else b""
    return b"%bdata: %b\n\n" % (name, data if isinstance(data, bytes) else orjson.dumps(data))


async def while_client_stays(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of some work, which is cancelled when the client leaves; None then.

    Raises:
        TimeoutError: A deadline within the work has cancelled all of it.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled():
            raise TimeoutError
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def respond(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    """The object that some work makes, unless the client leaves before."""
    found = await while_client_stays(request.receive, work)
    return Json(found) if found is not None else Response(status_code=499)


def salt_of(request: Request) -> str | None:
    """What keeps the cached prefixes of one key's requests apart from those of others; None if there are no keys."""
    user = request.state.user
    return hashlib.sha256(user.encode()).hexdigest() if user is not None else None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Keys:
    """Who may use the server.

    Args:
        keys: Names and keys; none: everybody may.
        admin_key: For /admin; None: nobody may.
    """

    def __init__(self, keys: Mapping[str, str], admin_key: str | None) -> None:
        self._keys = {name: _digest(key) for name, key in keys.items()}
        self._admin_key = _digest(admin_key) if admin_key is not None else None

    @classmethod
    def read(cls, keys_file: Path | None, admin_key_file: Path | None) -> Keys:
        """From files.

        Raises:
            DataError: One is missing or cannot be read.
            UsageError: One holds no key, what cannot be one, or two of one name; or there is more than one for /admin.
        """
        keys = _read_keys(keys_file) if keys_file is not None else {}
        admin_keys = _read_keys(admin_key_file) if admin_key_file is not None else {}
        if len(admin_keys) > 1:
            raise UsageError(f"admin key file {admin_key_file} holds more than one key", "leave one in it")
        return cls(keys, next(iter(admin_keys.values()), None))

    @property
    def are_wanted(self) -> bool:
        return bool(self._keys)

    @property
    def open_admin(self) -> bool:
        return self._admin_key is not None

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> str | None:
        """The name of who asks; None if nobody is asked for a key.

        Raises:
            ApiError: There is no key that opens this path (401), or there is nothing (404).
        """
        if path in OPEN_PATHS:
            return None
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        elif scheme.lower() == b"basic" and (path == PAGE_PATH or _is_of_own_page(headers)):
            given = _password(token)
        digest = hashlib.sha256(given).digest()
        if path.startswith(ADMIN_PATHS):
            if self._admin_key is None:
                raise ApiError(404, f"there is no {path}")
            if not hmac.compare_digest(self._admin_key, digest):
                raise ApiError(401, "this needs the admin key", code="invalid_api_key")
            return "admin"
        # each is compared, so that the time says nothing of which
        names = [name for name, key in self._keys.items() if hmac.compare_digest(key, digest)]
        if self._keys and not names:
            raise ApiError(401, "this needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        return names[0] if names else None


class Guard:
    """Lets only those through who have a key, and bodies that are not too large or too slow.

    The name of who asks becomes `request.state.user`.

    Args:
        app: What is guarded.
        keys: Who may.
        limits: How large, how slow.
        count_error: Called with the status of each error; `request.state.count_error` to those within.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits, count_error: Callable[[int], None]) -> None:
        self._app, self._keys, self._limits, self._count_error = app, keys, limits, count_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        state = scope.setdefault("state", {})
        state["count_error"] = self._count_error
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn leaves out the body
        try:
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if len(hosts) > 1:
                raise ApiError(400, "there is more than one Host header")
            user = self._keys.check(scope["path"], headers)
            # one without a Host header (in HTTP/1.0) is no browser, so that nobody has misled it
            if not self._keys.are_wanted and not all(map(_names_this_machine, hosts)):
                raise ApiError(403, "without keys this server answers only to localhost", code="wrong_host")
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self._limits.body_bytes:
                raise self._too_large()
            body = await self._body(receive) if scope["method"] in ("POST", "PUT", "PATCH", "DELETE") else b""
        except ApiError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        if body is None:
            return
        state["user"] = user
        conversation = headers.get(CONVERSATION_HEADER, b"")[:MOST_CONVERSATION_BYTES].decode("latin-1")
        caller.set(Caller(user, scope["path"], conversation or None))
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client has left."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._limits.body_bytes:
                        raise self._too_large()
        except TimeoutError as error:
            raise ApiError(408, f"the body has not arrived within {self._limits.body_s:g} s") from error
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limits.body_bytes:,} bytes")


def _read_keys(path: Path) -> dict[str, str]:
    """Keys by name: a line each, as `name:key` or the key alone; lines that begin with # say nothing."""
    with reading(path, "key file"):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"key file {path} is not UTF-8 text", "put a key in each line, as name:key") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        name, key = (name.strip(), key.strip()) if colon else (f"key {number}", line)
        if not key or not all("!" <= character <= "~" for character in key):
            raise UsageError(
                f"line {number} of key file {path} holds no key that a client could send",
                "a key is of ASCII characters without blanks; comments have lines of their own, which begin with #",
            )
        if name in keys:
            raise UsageError(f"key file {path} has two keys for {name!r}", "give each key a name of its own")
        keys[name] = key
    if not keys:
        raise UsageError(f"key file {path} holds no key", "put a key in each line, as name:key")
    return keys


def _names_this_machine(host: bytes) -> bool:
    """Whether a request was meant for this machine: a site whose name leads here now could read what it answers."""
    name = host.decode("latin-1").rpartition("@")[2]
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _password(token: bytes) -> bytes:
    """Of HTTP's basic authentication; the name before the colon does not matter."""
    try:
        return base64.b64decode(token.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _is_of_own_page(headers: Mapping[bytes, bytes]) -> bool:
    """Whether no other site's page has made this request: a browser adds a password that it knows to those, too."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site in (b"none", b"same-origin")
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == headers.get(b"host")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
