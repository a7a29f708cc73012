"""The log of requests: each is a row, texts are written only if wished, and no trouble with it is a request's."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serve.conftest import KEY, Served

from tallow.errors import DataError, UsageError
from tallow.serve import request_log
from tallow.serve.answers import Question
from tallow.serve.errors import ApiError
from tallow.serve.metrics import Record
from tallow.serve.request_log import LoggedRequest, RequestLog, read_requests
from tallow.serve.wire import Update

ASKED = Question(model=None, params={}, messages=[{"role": "user", "content": "Who\n are you?"}])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
def open_log(path: Path) -> Iterator[Callable[..., RequestLog]]:
    logs = []

    def open_one(**options: Any) -> RequestLog:
        logs.append(RequestLog(path, **options))
        return logs[-1]

    yield open_one
    for log in logs:
        log.close()


def take(
    log: RequestLog, question: Question = ASKED, text: str = "A candle.", error: BaseException | None = None
) -> None:
    """One request to `tiny` with an answer of three tokens."""
    record = Record()
    with log.request("tiny", question, record) as watch_texts:
        record.num_prompt_tokens = 9
        if error is not None:
            raise error
        for update in (
            Update(1, 0, [5], text[:2], None, [], [], [], [], 4, None),
            Update(1, 0, [6, 7], text[2:], "stop", [], [], [], [], 4, None),
        ):
            record.watch(update)
            watch_texts(update)


def all_columns(path: Path) -> list[LoggedRequest]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute(f"SELECT {', '.join(LoggedRequest._fields)} FROM requests ORDER BY id").fetchall()
    connection.close()
    return [LoggedRequest(*row) for row in rows]


def test_a_request_is_a_row(path: Path, open_log: Callable[..., RequestLog]) -> None:
    log, begun_s = open_log(), time.time()
    take(log)
    for error in (ApiError(429, "too many"), asyncio.CancelledError(), GeneratorExit(), ZeroDivisionError()):
        with pytest.raises(type(error)):
            take(log, error=error)
    log.close()
    first, *others = read_requests(path)
    assert begun_s <= first.arrived_s <= time.time()
    assert first.first_token_s is not None
    assert 0 < first.first_token_s < first.latency_s < 1
    assert first == LoggedRequest(
        first.arrived_s, None, "", "tiny", 200, 9, 4, 3, first.first_token_s, first.latency_s, "stop"
    )
    assert [other.status for other in others] == [429, 499, 499, 500]
    assert all(other.first_token_s is None and other.completion_tokens == 0 for other in others)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "what people have written is nobody else's"


@pytest.mark.parametrize("with_texts", [False, True])
def test_texts_are_written_only_if_wished(path: Path, open_log: Callable[..., RequestLog], with_texts: bool) -> None:
    log = open_log(with_texts=with_texts)
    take(log)
    take(log, Question(model=None, params={}, prompt=[1, 2, 3]))
    long = Question(model=None, params={}, prompt="x" * (request_log.MOST_TEXT_BYTES + 1))
    take(log, long)
    half_a_pair = Question(model=None, params={}, messages=[{"role": "user", "content": "\ud800"}, {"role": "tool"}])
    take(log, half_a_pair)
    log.close()
    rows = all_columns(path)
    assert len(rows) == 4
    if not with_texts:
        assert {(row.conversation, row.title, row.prompt, row.answers) for row in rows} == {(None, None, None, None)}
        assert b"candle" not in path.read_bytes()
        return
    assert rows[0].title == "Who are you?"
    assert json.loads(rows[0].prompt or "") == ASKED.messages
    assert json.loads(rows[0].answers or "") == ["A candle."]
    assert json.loads(rows[1].prompt or "") == [1, 2, 3]
    assert rows[2].prompt is None
    assert (rows[3].title, json.loads(rows[3].prompt or "")) == ("?", half_a_pair.messages)


def test_what_is_nested_too_deeply_is_left_out(path: Path, open_log: Callable[..., RequestLog]) -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    log = open_log(with_texts=True)
    take(log, Question(model=None, params={}, messages=[{"role": "user", "content": "x", "more": nested}]))
    log.close()
    assert [(row.status, row.prompt) for row in all_columns(path)] == [(200, None)]


def test_a_locked_file_holds_up_nobody_and_loses_nothing(
    path: Path, open_log: Callable[..., RequestLog], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_log, "LOCKED_S", 0.02)
    monkeypatch.setattr(request_log, "RETRY_S", 0.02)
    log = open_log()
    locking = sqlite3.connect(path, isolation_level=None)
    locking.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.ERROR, "tallow.serve"):
        begun_s = time.monotonic()
        for _ in range(5):
            take(log)
        assert time.monotonic() - begun_s < 1
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # it tries again and again
    assert [record.getMessage() for record in caplog.records] == [
        f"requests are answered, but cannot be written to {path}: database is locked"
    ], "said once"
    locking.execute("ROLLBACK")
    locking.close()
    log.close()
    assert len(read_requests(path)) == 5
    assert log.num_lost == 0


def test_a_full_disk_costs_rows_alone(
    path: Path, open_log: Callable[..., RequestLog], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_file = request_log._open

    def open_on_full_disk(path: Path) -> sqlite3.Connection:
        connection = open_file(path)
        connection.execute("PRAGMA max_page_count = 8")  # SQLite then says what it says of a full disk
        return connection

    monkeypatch.setattr(request_log, "_open", open_on_full_disk)
    monkeypatch.setattr(request_log, "RETRY_S", 0.02)
    monkeypatch.setattr(request_log, "MOST_QUEUED", 20)
    log = open_log(with_texts=True)
    for _ in range(60):
        take(log, text="x" * 4000)
    with caplog.at_level(logging.ERROR, "tallow.serve"):
        log.close()
    written = len(read_requests(path))
    assert written + log.num_lost == 60
    assert log.num_lost >= 40
    assert f"{log.num_lost} requests are missing in {path}" in caplog.text


def test_what_is_no_such_log_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for the header of one" * 4)
    before = path.read_bytes()
    with pytest.raises(DataError, match="not a database"):
        RequestLog(path)
    with pytest.raises(DataError, match="not a database"):
        read_requests(path)
    assert path.read_bytes() == before
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    before = path.read_bytes()
    for use in (RequestLog, read_requests):
        with pytest.raises(DataError, match="no request log"):
            use(path)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written"):
        RequestLog(path.parent / "missing" / "log.sqlite")
    with pytest.raises(DataError, match="does not exist"):
        read_requests(path.parent / "missing.sqlite")
    assert not (path.parent / "missing.sqlite").exists()


def test_a_log_is_gone_on_with(path: Path, open_log: Callable[..., RequestLog]) -> None:
    for _ in range(2):
        log = open_log()
        take(log)
        log.close()
    assert len(read_requests(path)) == 2


def test_what_is_too_old_is_removed(path: Path, open_log: Callable[..., RequestLog]) -> None:
    log = open_log(with_texts=True)
    for text in ("An old one.", "A candle."):
        take(log, text=text)
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE requests SET arrived_s = arrived_s - 2 * 86400 WHERE id = 1")
    connection.close()
    open_log(days=3).close()
    assert len(read_requests(path)) == 2
    open_log(days=1).close()
    assert [json.loads(row.answers or "") for row in all_columns(path)] == [["A candle."]]
    assert b"An old one" not in path.read_bytes(), "overwritten"


def test_a_server_logs_whom_it_answers(serve: Callable[..., Served], tmp_path: Path, path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice:{KEY}\nbob:sk-beta-2\n")
    served = serve(f"--keys-file={tmp_path / 'keys'}", f"--log={path}")
    body = {"messages": [{"role": "user", "content": "secret"}], "max_tokens": 7, "seed": 3}
    with served.client(KEY) as alice, served.client("sk-beta-2") as bob:
        usage = alice.post("/v1/chat/completions", json=body).json()["usage"]
        alice.post("/v1/chat/completions", json=body)
        bob.post("/v1/completions", json={"prompt": "x" * 1100})
        with bob.stream("POST", "/v1/completions", json={"prompt": "a", "max_tokens": 400, "stream": True}) as stream:
            next(stream.iter_lines())
        assert alice.get("/conversations").json()["data"] == [], "nothing has been kept"
        deadline = time.monotonic() + 30
        while len(rows := read_requests(path)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert [(row.key, row.api, row.model) for row in rows] == [
        ("alice", "/v1/chat/completions", "tiny"),
        ("alice", "/v1/chat/completions", "tiny"),
        ("bob", "/v1/completions", "tiny"),
        ("bob", "/v1/completions", "tiny"),
    ]
    first, again, too_long, left = rows
    assert (first.prompt_tokens, first.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert first.finish_reasons in ("length", "stop")
    assert again.cached_tokens >= 16
    assert (first.status, too_long.status) == (200, 400)
    assert left.status in (200, 499), "the client has left, unless the answer was there before"
    assert b"secret" not in path.read_bytes() + path.with_name("log.sqlite-wal").read_bytes()
