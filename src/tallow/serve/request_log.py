"""A row a request in an SQLite file: who asked, what it took, how it ended; its texts only if that is wished.

Rows are written by a thread of their own. A disk that is full or a file that somebody has locked costs rows at worst,
never a request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import queue
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from tallow.errors import DataError, TallowError, reading, writing
from tallow.serve.answers import Question
from tallow.serve.errors import ApiError
from tallow.serve.metrics import Record
from tallow.serve.wire import Update

APPLICATION_ID, SCHEMA_VERSION = 0x7A110, 1
LOCKED_S, RETRY_S, CLOSE_S, IDLE_S, DAY_S = 1.0, 1.0, 5.0, 3600.0, 86400.0
MOST_QUEUED = 1024
MOST_TEXT_BYTES = 1 << 18
"""Of a prompt; with a longer one neither it nor its answers are written."""
TITLE_CHARACTERS = 80

log = logging.getLogger("tallow.serve")


class Caller(NamedTuple):
    """Who asks.

    Args:
        key: The name of the API key; None if there are no keys.
        api: The path that was asked.
        conversation: What the client says that its request belongs to.
    """

    key: str | None = None
    api: str = ""
    conversation: str | None = None


caller: ContextVar[Caller] = ContextVar("caller")
"""Of the request that is being answered."""


class LoggedRequest(NamedTuple):
    """A row of the log.

    Args:
        arrived_s: When, in seconds since 1970.
        key, api, conversation: As of its `Caller`.
        model: The name of the model or adapter.
        status: Of HTTP; 499: the client has left.
        prompt_tokens, cached_tokens: Of the prompt, and of those the ones found in the cache.
        completion_tokens: Of all its answers.
        first_token_s: From arrival to the first token; None: there was none.
        latency_s: From arrival to the last token, or to its end without one.
        finish_reasons: Of its answers, with commas between.
        title: How the conversation begins.
        prompt, answers: As JSON.
    """

    arrived_s: float
    key: str | None
    api: str
    model: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float | None
    latency_s: float
    finish_reasons: str
    conversation: str | None = None
    title: str | None = None
    prompt: str | None = None
    answers: str | None = None


MEASURED = LoggedRequest._fields[:11]
"""All columns but the texts."""
SCHEMA = (
    f"CREATE TABLE requests (id INTEGER PRIMARY KEY, {', '.join(LoggedRequest._fields)})",
    "CREATE INDEX conversations ON requests (key, conversation, id) WHERE conversation IS NOT NULL",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
INSERT = (
    f"INSERT INTO requests ({', '.join(LoggedRequest._fields)}) VALUES ({', '.join('?' * len(LoggedRequest._fields))})"
)


class RequestLog:
    """Where requests are written.

    Args:
        path: The file; None: nowhere.
        with_texts: Write prompts and answers, too.
        days: For which a row is kept.

    Raises:
        UsageError: The file cannot be written.
        DataError: It is something else than such a log.
    """

    def __init__(self, path: Path | None, *, with_texts: bool = False, days: float = math.inf) -> None:
        self.num_lost = 0
        self._path, self._with_texts, self._keep_s = path, with_texts and path is not None, days * DAY_S
        self._rows: queue.SimpleQueue[LoggedRequest | None] = queue.SimpleQueue()
        self._is_closing, self._has_complained = threading.Event(), False
        self._thread: threading.Thread | None = None
        if path is not None:
            self._thread = threading.Thread(target=self._write, args=(_open(path),), name="request log", daemon=True)
            self._thread.start()

    @contextmanager
    def request(self, model: str, question: Question, record: Record) -> Iterator[Callable[[Update], None]]:
        """Write a row for what happens in this block, which gets what is to be told how the answers grow."""
        arrived_s, status = time.time(), 200
        texts: defaultdict[int, list[str]] = defaultdict(list)  # of the answers, in pieces

        def watch(update: Update) -> None:
            if self._with_texts:
                texts[update.choice].append(update.text)

        try:
            yield watch
        except BaseException as error:
            has_left = isinstance(error, asyncio.CancelledError | GeneratorExit)
            status = error.status if isinstance(error, ApiError) else 499 if has_left else 500
            raise
        finally:
            if self._rows.qsize() >= MOST_QUEUED:
                self.num_lost += 1
            elif self._thread is not None:
                row = _row(arrived_s, model, status, record)
                self._rows.put(_with_texts(row, question, texts) if self._with_texts else row)

    def _write(self, connection: sqlite3.Connection) -> None:
        """The thread: all rows that there are with each transaction, until None comes."""
        with closing(connection):
            rows: list[LoggedRequest | None] = []
            while True:
                self._change(connection, [row for row in rows if row is not None])
                if None in rows:
                    return
                rows = []
                with suppress(queue.Empty):
                    rows.append(self._rows.get(timeout=IDLE_S))
                    while True:
                        rows.append(self._rows.get_nowait())

    def _change(self, connection: sqlite3.Connection, new: list[LoggedRequest]) -> None:
        """Write new rows, and remove those that are too old."""
        while True:
            is_last_try = self._is_closing.is_set()
            try:
                with connection:
                    connection.execute("DELETE FROM requests WHERE arrived_s < ?", (time.time() - self._keep_s,))
                    connection.executemany(INSERT, new)
                return
            except sqlite3.Error as error:
                if not self._has_complained:
                    self._has_complained = True
                    log.error("requests are answered, but cannot be written to %s: %s", self._path, error)
            if is_last_try:
                self.num_lost += len(new)
                return
            self._is_closing.wait(RETRY_S)

    def close(self) -> None:
        """Write what waits to be written; if that takes long, do without."""
        if self._thread is not None and not self._is_closing.is_set():
            self._is_closing.set()
            self._rows.put(None)
            self._thread.join(CLOSE_S)
            if self.num_lost:
                log.error("%d requests are missing in %s", self.num_lost, self._path)

    async def conversations(self, key: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest ones of a key's owner."""
        found = await self._select(
            "SELECT conversation, max(id), arrived_s, model, title FROM requests"
            " WHERE key IS ? AND conversation IS NOT NULL GROUP BY conversation ORDER BY max(id) DESC LIMIT ?",
            (key, limit),
        )
        return [
            {"id": conversation, "created": int(arrived_s), "model": model, "title": title}
            for conversation, _, arrived_s, model, title in found
        ]

    async def conversation(self, key: str | None, conversation: str) -> dict[str, Any] | None:
        """One of them with its messages; None: this key's owner has had none such."""
        found = await self._select(
            "SELECT arrived_s, model, title, prompt, answers FROM requests"
            " WHERE key IS ? AND conversation = ? ORDER BY id DESC LIMIT 1",
            (key, conversation),
        )
        for arrived_s, model, title, prompt, answers in found:
            messages, texts = json.loads(prompt), json.loads(answers)
            messages += [{"role": "assistant", "content": text} for text in texts[:1]]
            about = {"id": conversation, "created": int(arrived_s), "model": model, "title": title}
            return about | {"messages": messages}
        return None

    async def _select(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._path is None or not self._with_texts:
            return []
        try:
            return await asyncio.to_thread(_select, self._path, query, values)
        except TallowError as error:
            raise ApiError(503, error.message, retry_after_s=RETRY_S) from error


def read_requests(path: Path) -> list[LoggedRequest]:
    """All rows of a log in the order of their arrival, without their texts.

    Raises:
        DataError: The file is missing, or no such log.
    """
    rows = _select(path, f"SELECT {', '.join(MEASURED)} FROM requests ORDER BY arrived_s")
    return [LoggedRequest(*row) for row in rows]


def _row(arrived_s: float, model: str, status: int, record: Record) -> LoggedRequest:
    who = caller.get(Caller())
    last_s = record.last_s if record.finish_reasons else time.monotonic()
    return LoggedRequest(
        arrived_s,
        who.key,
        who.api,
        model,
        status,
        record.num_prompt_tokens,
        record.num_cached_tokens,
        record.num_tokens,
        record.first_s - record.arrived_s if record.first_s is not None else None,
        last_s - record.arrived_s,
        ",".join(record.finish_reasons),
    )


def _with_texts(row: LoggedRequest, question: Question, texts: Mapping[int, Sequence[str]]) -> LoggedRequest:
    try:
        if question.num_bytes > MOST_TEXT_BYTES:
            return row
        return row._replace(
            conversation=caller.get(Caller()).conversation if question.messages else None,
            title=_title(question),
            prompt=json.dumps(list(question.messages) or question.prompt),
            answers=json.dumps(["".join(texts[choice]) for choice in sorted(texts)]),
        )
    except RecursionError:  # a client can nest a message so deeply that it can be read, but not written
        return row


def _title(question: Question) -> str | None:
    asked = [str(message.get("content")) for message in question.messages if message.get("role") == "user"]
    # a client can send halves of surrogate pairs, which SQLite does not take
    return " ".join(asked[0].split())[:TITLE_CHARACTERS].encode(errors="replace").decode() if asked else None


def _open(path: Path) -> sqlite3.Connection:
    """For the thread, made here so that what is wrong with the file is told when the server starts."""
    with writing(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # it may hold what people have written
    with _telling(path):
        connection = sqlite3.connect(path, timeout=LOCKED_S, check_same_thread=False)
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    for statement in SCHEMA:
                        connection.execute(statement)
                _check(connection, path)
                connection.execute("CREATE INDEX IF NOT EXISTS arrivals ON requests (arrived_s)")
            connection.execute("PRAGMA secure_delete = ON")  # what is too old is overwritten, too
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
    return connection


def _select(path: Path, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    with reading(path, "request log"):
        path.open("rb").close()
    address = f"{path.absolute().as_uri()}?mode=ro"
    with _telling(path), closing(sqlite3.connect(address, timeout=LOCKED_S, uri=True)) as connection:
        _check(connection, path)
        return connection.execute(query, values).fetchall()


def _check(connection: sqlite3.Connection, path: Path) -> None:
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if found != [APPLICATION_ID, SCHEMA_VERSION]:
        raise DataError(f"{path} is no request log of this version of tallow", "name another file")


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"the request log {path} cannot be used: {error}", "name another file") from error
