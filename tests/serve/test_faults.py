"""Clients that leave, engines that die or hang, a server that is told to end; and a soak of all of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message
from tests.engine.lora import random_adapter
from tests.serve.conftest import ADMIN_KEY, Served
from tests.serve.forked import Forked

from tallow.models.formats.adapters import write_adapter
from tallow.models.formats.hub import read_config
from tallow.serve import engine_process
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream, sse
from tallow.serve.service import Service
from tallow.serve.settings import ModelSettings, ServeSettings
from tallow.tokenizer.chat import encode_chat_prompt

CHAT = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4}
LONG = CHAT | {"max_tokens": 400, "ignore_eos": True, "stream": True}
SOAK_REQUESTS = 2000
SOAK_CLIENTS = 24
MOST_GROWTH = 24 << 20


class Admin:
    """Who may load and unload."""

    def __init__(self, directory: Path) -> None:
        (directory / "admin-key").write_text(ADMIN_KEY)
        self.arguments = ("--admin-key-file", str(directory / "admin-key"))

    def post(self, served: Served, path: str, body: object = None) -> httpx.Response:
        with served.client(ADMIN_KEY) as client:
            return client.post(f"/admin/models/tiny{path}", json=body)


@pytest.fixture
def admin(tmp_path: Path) -> Admin:
    return Admin(tmp_path)


def post(served: Served, **body: Any) -> httpx.Response:
    with served.client() as client:
        return client.post("/v1/chat/completions", json=CHAT | body)


def metric(served: Served, name: str) -> float:
    """The sum of a metric over its labels."""
    with served.client() as client:
        text = client.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_quiet(served: Served) -> bool:
    """Whether nothing is computed, and all blocks of the cache are free."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "tallow:requests")
    return all(metric(served, name) == 0 for name in names)


def test_an_answer_that_nobody_waits_for_ends(served: Served) -> None:
    made = metric(served, "vllm:generation_tokens_total")
    for is_stream in (True, False):
        with served.client() as client:
            try:
                with client.stream(
                    "POST", "/v1/chat/completions", json=LONG | {"stream": is_stream, "n": 16}, timeout=0.3
                ) as answer:
                    next(answer.iter_lines(), None)
            except httpx.TimeoutException:
                pass
        wait(lambda: is_quiet(served), 10)
    assert metric(served, "vllm:generation_tokens_total") - made < 2 * 16 * 400


def test_deadlines_are_kept(served: Served) -> None:
    begin = time.monotonic()
    answer = post(served, max_tokens=900, ignore_eos=True, n=16, timeout=0.05)
    assert time.monotonic() - begin < 5
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "timeout"
    with (
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=LONG | {"n": 16, "timeout": 0.2}) as stream,
    ):
        text = stream.read().decode()
    assert '"code":"timeout"' in text or '"finish_reason":"length"' in text
    wait(lambda: is_quiet(served), 10)


def test_an_engine_that_dies_is_started_again(serve: Callable[..., Served]) -> None:
    served = serve("--max-running", "1")
    [engine] = served.engine_pids()
    results: list[int] = []

    def ask(**body: Any) -> None:
        results.append(post(served, **body).status_code)

    first = threading.Thread(target=ask, kwargs={"max_tokens": 900, "ignore_eos": True})
    first.start()
    wait(lambda: metric(served, "vllm:num_requests_running") == 1 or not first.is_alive())
    queued = [threading.Thread(target=ask) for _ in range(4)]
    for thread in queued:
        thread.start()
    os.kill(engine, signal.SIGKILL)
    wait(lambda: served.health()["status"] != "ready" or served.engine_pids() != [engine])
    for thread in (first, *queued):
        thread.join(60)
    counts = Counter(results)
    assert counts[200] >= 4  # what was queued goes on
    assert counts[200] + counts[500] == 5
    assert served.health()["status"] == "ready"
    assert served.engine_pids() != [engine]
    assert metric(served, "tallow:engine_restarts_total") == 1


def test_an_engine_that_hangs_is_started_again(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.stall_s=1.5")
    [engine] = served.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    assert post(served).status_code == 200  # it had not begun: the next engine answers it
    assert served.engine_pids() != [engine]


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`tallow serve`, which ends by itself."""
    command = [sys.executable, "-m", "tallow", "serve", *arguments, "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_that_is_not_there_is_told_at_once() -> None:
    done = ended("no-such-model")
    assert done.returncode == 3
    assert "no-such-model" in done.stderr


def test_a_first_model_that_cannot_be_loaded_ends_the_server(model_path: Path, tmp_path: Path) -> None:
    for code, said, arguments in (
        (3, "no-such-adapter", ("--adapter", "x=no-such-adapter")),
        (2, "cannot hold one block", ("--cache-bytes", "1000")),
    ):
        log = tmp_path / f"log {code}"
        assert Forked([str(model_path), *arguments, "--port", "0"], log).wait(60) == code, log.read_text()
        assert said in log.read_text().splitlines()[-2]
        assert "Traceback" not in log.read_text()


def test_a_first_model_whose_process_dies_while_it_is_loaded_ends_the_server(model_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "tallow", "serve", str(model_path), "--port", "0"]
    with (tmp_path / "log").open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        served = Served("", process, tmp_path / "log")
        wait(lambda: bool(served.engine_pids()))
        os.kill(served.engine_pids()[0], signal.SIGKILL)
        assert process.wait(60) == 1
    said = served.log.read_text()
    assert f"the engine process of {model_path} was ended by SIGKILL" in said.splitlines()[-2]
    assert "Traceback" not in said


def test_a_host_that_is_none_is_told(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a:b")
    done = ended(str(model_path), "--host", "not.a.host.invalid", "--keys-file", str(tmp_path / "keys"))
    assert done.returncode == 2
    assert "choose another --host" in done.stderr


def test_a_model_that_cannot_be_loaded_is_dead(serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    served = serve(f"--model=broken={tmp_path / 'broken'}")
    wait(lambda: served.health()["models"] == {"tiny": "ready", "broken": "dead"})
    assert served.health()["status"] == "dead"
    answer = post(served, model="broken")
    assert answer.status_code == 503
    assert "cannot be loaded" in answer.json()["error"]["message"]
    assert post(served, model="tiny").status_code == 200


def test_a_dead_engine_is_tried_again_though_nobody_asks(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "FIRST_RETRY_S", 0.2)
    moved = tmp_path / "model"
    moved.mkdir()
    models = {
        "first": ModelSettings(path=str(moved)),
        "on-demand": ModelSettings(path=str(tmp_path / "none"), unload_after_s=60),
    }

    async def live() -> None:
        service = Service(ServeSettings(models=models))
        async with service.running(), asyncio.timeout(60):
            while service.health != "dead":
                await asyncio.sleep(0.01)
            assert service.engines["on-demand"].state == "unloaded"
            shutil.copytree(model_path, moved, dirs_exist_ok=True)
            while service.health != "ready":
                await asyncio.sleep(0.01)
            with pytest.raises(ApiError, match="cannot be loaded"):
                await service.engine("on-demand").ready()
            assert service.engines["on-demand"].state == "dead"
            assert service.health == "ready"

    asyncio.run(live())


def test_a_template_is_tried_before_the_first_conversation(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def encode(*arguments: Any) -> list[int]:
        tried.append(True)
        try:
            return encode_chat_prompt(*arguments)
        finally:
            time.sleep(1)  # it may not take its time

    monkeypatch.setattr(engine_process, "encode_chat_prompt", encode)
    path = shutil.copytree(model_path, tmp_path / "model")
    (path / "chat_template.jinja").write_text("{{ raise_exception('no') }}")

    async def load() -> float:
        service = Service(ServeSettings(models={"tiny": ModelSettings(path=str(path))}))
        async with service.running():
            while not tried:
                await asyncio.sleep(0.001)
            begin = time.monotonic()
            await service.engine(None).ready()
            return time.monotonic() - begin

    assert asyncio.run(load()) < 0.6
    assert len(tried) == 1


def test_who_waits_for_a_model_is_told_when_it_is_unloaded(serve: Callable[..., Served], admin: Admin) -> None:
    served = serve(*admin.arguments, by_command=True)  # whose engine takes its time to load
    assert admin.post(served, "/unload").json() == {"state": "unloaded"}
    answers: list[httpx.Response] = []

    def ask(path: str) -> None:
        with served.client() as client:
            answers.append(client.post(path, json=CHAT))

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/tokenize", "/v1/chat/completions")]
    for thread in threads:
        thread.start()
    wait(lambda: served.health()["status"] == "loading")
    time.sleep(0.3)
    assert admin.post(served, "/unload").json() == {"state": "unloaded"}
    for thread in threads:
        thread.join(20)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "unloaded" in answers[0].text
    assert served.health()["models"] == {"tiny": "unloaded"}
    assert post(served).status_code == 200


def test_an_adapter_that_cannot_be_opened_kills_nothing(serve: Callable[..., Served], admin: Admin) -> None:
    served = serve(*admin.arguments)
    engines = served.engine_pids()
    for path in ("a\0b", "no-such-directory", "/dev/null", "x" * 4096):
        assert admin.post(served, "/adapters", {"name": "x", "path": path}).status_code == 400, path
    assert served.engine_pids() == engines
    assert post(served).status_code == 200


def test_an_adapter_that_has_gone_does_not_take_its_model_along(
    serve: Callable[..., Served], admin: Admin, model_path: Path, tmp_path: Path
) -> None:
    config, adapter = read_config(model_path), tmp_path / "adapter"
    write_adapter(random_adapter(config, seed=1), config, adapter, "tiny")
    served, gone = serve(*admin.arguments), tmp_path / "gone"
    for name, path in (("here", adapter), ("a/b", shutil.copytree(adapter, gone))):
        assert admin.post(served, "/adapters", {"name": name, "path": str(path)}).status_code == 200
    [engine] = served.engine_pids()
    shutil.rmtree(gone)
    os.kill(engine, signal.SIGKILL)
    wait(lambda: served.health()["status"] == "ready" and served.engine_pids() != [engine])
    assert post(served).status_code == 200
    assert post(served, model="here").status_code == 200
    assert post(served, model="a/b").status_code == 404


def test_loading_counts_as_use(serve: Callable[..., Served], admin: Admin) -> None:
    served = serve(*admin.arguments, "--unload-after-s", "3")
    assert post(served).status_code == 200
    wait(lambda: served.health()["models"] == {"tiny": "unloaded"})
    assert admin.post(served, "/load").json() == {"state": "ready"}
    time.sleep(1.5)
    assert served.health()["models"] == {"tiny": "ready"}


def test_idle_models_are_unloaded_and_come_back(serve: Callable[..., Served]) -> None:
    served = serve("--unload-after-s", "0.5")
    wait(lambda: not served.engine_pids())
    assert served.health()["status"] == "ready"
    assert served.health()["models"] == {"tiny": "unloaded"}
    assert post(served).status_code == 200
    assert len(served.engine_pids()) == 1


def test_what_is_being_answered_is_finished_before_the_end(serve: Callable[..., Served]) -> None:
    served = serve()
    with served.client() as client, client.stream("POST", "/v1/chat/completions", json=LONG | {"n": 16}) as answer:
        lines = answer.iter_lines()
        next(lines)
        for process in (*served.engine_pids(), served.process.pid):  # as some send it to all processes of a service
            os.kill(process, signal.SIGTERM)
        wait(lambda: served.health()["status"] == "draining")
        refused = post(served)
        rest = list(lines)
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert rest[-2] == "data: [DONE]"
    assert '"error"' not in "".join(rest)
    assert served.process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(serve: Callable[..., Served]) -> None:
    served = serve()
    [engine] = served.engine_pids()
    told: list[str] = []
    begun = threading.Barrier(3)
    body = LONG | {"max_tokens": 900, "n": 16}

    def stream() -> None:
        with served.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            begun.wait()
            told.extend(lines)

    threads = [threading.Thread(target=stream) for _ in range(2)]
    os.kill(engine, signal.SIGSTOP)  # so that it is in the midst of them
    for thread in threads:
        thread.start()
    wait(lambda: metric(served, "tallow:requests") == 2)
    os.kill(engine, signal.SIGCONT)
    begun.wait()
    os.kill(engine, signal.SIGSTOP)
    served.process.send_signal(signal.SIGTERM)
    wait(lambda: served.health()["status"] == "draining")
    begin = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    assert time.monotonic() - begin < 3
    for thread in threads:
        thread.join(20)
    assert "Traceback" not in served.log.read_text()
    assert "".join(told).count("the server has been shut down") == 2


def test_who_does_not_read_until_the_deadline_is_left() -> None:
    counted: list[int] = []
    is_ended = False

    async def events() -> AsyncGenerator[bytes, None]:
        nonlocal is_ended
        try:
            async with asyncio.timeout(0.05):
                while True:
                    yield sse("more")
        finally:
            is_ended = True

    async def answer() -> None:
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        state = {"count_error": counted.append, "abort": gone.set}
        await EventStream(events(), lambda _error: b"")({"type": "http", "path": "/", "state": state}, receive, send)
        assert gone.is_set()

    asyncio.run(answer())
    assert counted == [408]
    assert is_ended


def test_who_stops_reading_is_left_and_who_reads_slowly_is_not(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.send_s=0.7")
    whole = json.dumps({"prompt": "a" * 800_000, "return_token_strs": True})
    stream = json.dumps(LONG | {"n": 16, "logprobs": True, "top_logprobs": 20})
    for path, body, connection in (
        ("/tokenize", whole, "keep-alive"),
        ("/tokenize", whole, "close"),
        ("/v1/chat/completions", stream, "keep-alive"),
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        errors = metric(served, "tallow:errors_total")
        with small_socket(served) as client:
            client.sendall((head + body).encode())
            assert 0.7 < seconds_held(client) < 10
        assert metric(served, "tallow:errors_total") == errors + 1
        wait(lambda: is_quiet(served), 5)

    body = json.dumps({"prompt": "a" * 200_000, "return_token_strs": True})
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    with small_socket(served) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer, begin = b"", time.monotonic()
        while piece := client.recv(1 << 15):
            answer += piece
            time.sleep(0.05)
    assert time.monotonic() - begin > 1.5
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["count"] == 200_000


def seconds_held(client: socket.socket) -> float:
    """From when the server has a connection until it has closed its end, though it cannot tell the client so."""
    own_end = f":{client.getsockname()[1]:04X}"

    def is_held() -> bool:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        return any(line[2].endswith(own_end) and line[9] != "0" for line in lines)  # inode 0: no process has it

    wait(is_held)
    begin = time.monotonic()
    wait(lambda: not is_held())
    return time.monotonic() - begin


def small_socket(served: Served) -> socket.socket:
    """A connection that takes little before it is read."""
    client = socket.socket()
    client.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
    return client


def test_soak(serve: Callable[..., Served]) -> None:
    """2,000 requests of all kinds, one crash: each is answered or accounted for, and nothing is left behind."""
    served = serve("--set", "serve.limits.requests=20", by_command=True)
    outcomes = asyncio.run(_soak(served))
    assert sum(outcomes.values()) == SOAK_REQUESTS
    assert set(outcomes) <= {200, 400, 404, 408, 413, 429, 500, 503, "left", "broken off"}, outcomes
    assert outcomes[200] > SOAK_REQUESTS / 8
    assert outcomes[500] + outcomes["broken off"] <= 20  # no more than the crash can take along
    wait(lambda: is_quiet(served))
    assert served.health()["status"] == "ready"
    assert metric(served, "tallow:engine_restarts_total") == 1
    assert post(served).status_code == 200


async def _soak(served: Served) -> Counter[int | str]:
    chance = random.Random(5)
    outcomes: Counter[int | str] = Counter()
    numbers = iter(range(SOAK_REQUESTS))
    memory: list[int] = []

    async def worker(client: httpx.AsyncClient) -> None:
        for number in numbers:
            if number == SOAK_REQUESTS // 2:
                os.kill(served.engine_pids()[0], signal.SIGKILL)
            if number in (SOAK_REQUESTS // 4, SOAK_REQUESTS - 1):
                memory.append(_rss(served.process.pid))
            outcomes[await _one(client, chance)] += 1

    async def watch(client: httpx.AsyncClient) -> None:
        while sum(outcomes.values()) < SOAK_REQUESTS:
            assert (await client.get("/health")).json()["status"] in ("ready", "loading")
            await asyncio.sleep(0.01)

    limits = httpx.Limits(max_connections=SOAK_CLIENTS + 1)
    async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
        await asyncio.gather(watch(client), *(worker(client) for _ in range(SOAK_CLIENTS)))
    assert memory[1] - memory[0] < MOST_GROWTH
    return outcomes


async def _one(client: httpx.AsyncClient, chance: random.Random) -> int | str:
    """One request of a random kind, and what becomes of it."""
    kind = chance.choice(
        ("whole", "whole", "stream", "leave", "leave at once", "bad", "deadline", "completion", "schema")
    )
    text = "".join(chance.choice("abcdefgh ") for _ in range(chance.randrange(1, 300)))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": chance.randrange(1, 40),
        "temperature": chance.choice((0, 1)),
        "n": chance.choice((1, 1, 1, 3)),
    }
    path = "/v1/chat/completions"
    if kind == "bad":
        content = chance.choice(
            (b"{", b"[]", b"\xff\xfe", b'{"messages": 5}', b'{"model": "other", "messages": [{"role": "user"}]}')
        )
        return (await client.post(path, content=content, headers={"Content-Type": "application/json"})).status_code
    if kind == "completion":
        return (await client.post("/v1/completions", json={"prompt": [text, text[:5]], "max_tokens": 5})).status_code
    if kind == "deadline":
        body |= {"timeout": 0.01, "max_tokens": 400}
    if kind == "schema":
        body["structured_outputs"] = {"regex": "[a-c]{1,5}"}
    if kind not in ("stream", "leave", "leave at once"):
        try:
            return (await client.post(path, json=body)).status_code
        except httpx.RemoteProtocolError:
            return "broken off"
    if kind == "leave at once":
        try:
            await client.post(path, json=body | {"max_tokens": 400, "ignore_eos": True}, timeout=chance.random() * 0.05)
        except httpx.TimeoutException:
            return "left"
    async with client.stream("POST", path, json=body | {"stream": True}) as answer:
        lines = [line async for line, _ in _numbered(answer, 3 if kind == "leave" else None)]
    if answer.status_code != 200:
        return answer.status_code
    if kind == "leave":
        return "left"
    if "data: [DONE]" not in lines[-2:]:
        return "broken off"
    return 500 if any('"error"' in line for line in lines) else 200


async def _numbered(answer: httpx.Response, most: int | None) -> AsyncIterator[tuple[str, int]]:
    number = 0
    async for line in answer.aiter_lines():
        yield line, number
        number += 1
        if number == most:
            return


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
