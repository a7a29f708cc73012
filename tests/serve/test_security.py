"""What has gone wrong in other servers, as tests; and who may do what."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route
from tests.engine.conftest import make_model, make_tokenizer, tiny
from tests.serve.conftest import ADMIN_KEY, KEY, Served, serving

from tallow.errors import DataError, UsageError
from tallow.models.formats import save_model
from tallow.serve.app import make_app
from tallow.serve.errors import ApiError
from tallow.serve.http import Keys
from tallow.serve.service import Service
from tallow.serve.settings import ModelSettings, ServeSettings

CHAT = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4}
OTHER_KEY = "sk-beta-2"


@pytest.fixture(scope="module")
def guarded(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with keys."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "keys").write_text(f"alpha:{KEY}\nbeta:{OTHER_KEY}\n")
    (directory / "admin").write_text(f"{ADMIN_KEY}\n")
    files = ("--keys-file", str(directory / "keys"), "--admin-key-file", str(directory / "admin"))
    with serving(directory / "log", f"--model=tiny={model_path}", *files) as served:
        yield served


def post(
    served: Served, body: dict[str, Any], path: str = "/v1/chat/completions", key: str | None = None
) -> httpx.Response:
    with served.client(key) as client:
        return client.post(path, json=body)


def is_well(served: Served, key: str | None = None) -> bool:
    return served.health()["status"] == "ready" and post(served, CHAT, key=key).status_code == 200


def test_every_route_but_health_wants_a_key(guarded: Served) -> None:
    app = make_app(Service(ServeSettings(models={"tiny": ModelSettings(path="tiny")})), Keys({"a": "b"}, "c"))
    routes = [
        (method, route.path) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
    ]
    assert len(app.routes) == len({path for _, path in routes}) > 12
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        for method, path in routes:
            path = re.sub(r"\{[^}]*\}", "x", path)
            for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"X-Api-Key": ""}, {"Authorization": KEY}):
                status = client.request(method, path, headers=headers).status_code
                assert status == (401 if path != "/health" else 200), (method, path, headers, status)
        assert client.get("/no-such-path").status_code == 401  # not even what there is, is told
        assert client.get("/no-such-path", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404
        assert client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": f"bearer {OTHER_KEY}"}).status_code == 200


def test_admin_has_a_key_of_its_own(guarded: Served) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        for key in (KEY, OTHER_KEY, "x"):
            assert client.get("/admin/state", headers={"Authorization": f"Bearer {key}"}).status_code == 401
        assert client.get("/admin/state", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).status_code == 401


def test_key_files_say_what_they_seem_to(tmp_path: Path) -> None:
    file, admin = tmp_path / "keys", tmp_path / "admin"
    file.write_text("\ufeff# alpha: hunter2\n#\n\n alpha : a:b\nsk-alone\n", encoding="utf-8")
    admin.write_text("# of the operator\nme:root\n")
    keys = Keys.read(file, admin)
    assert keys.check("/v1/models", {b"x-api-key": b"a:b"}) == "alpha"
    assert keys.check("/v1/models", {b"x-api-key": b"sk-alone"}) == "key 5"
    assert keys.check("/admin/state", {b"x-api-key": b"root"}) == "admin"
    for key in (b"hunter2", b"# alpha: hunter2", b"#", b"sk-alone "):
        with pytest.raises(ApiError, match="needs an API key"):
            keys.check("/v1/models", {b"x-api-key": key})


@pytest.mark.parametrize(
    "text", [b"", b"# none\n", b"a:", b":", b"a:b\na:c", b"a:b # mine", b"a:\xc3\xa9", b"\xff\xfe", b"a:b\0"]
)
def test_key_files_that_could_be_misread_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "keys").write_bytes(text)
    with pytest.raises(UsageError if text != b"\xff\xfe" else DataError, match="key"):
        Keys.read(tmp_path / "keys", None)


def test_there_is_one_admin_key(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("a:b\nc:d\n")
    with pytest.raises(UsageError, match="more than one"):
        Keys.read(None, tmp_path / "admin")


def test_without_an_admin_key_there_is_no_admin(served: Served) -> None:
    with served.client() as client:
        assert client.get("/admin/state").status_code == 404


def test_others_cannot_reach_it_without_keys(model_path: Path) -> None:
    command = [sys.executable, "-m", "tallow", "serve", str(model_path), "--host", "0.0.0.0", "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "no keys are set" in refused.stderr


def test_no_origin_is_let_in(served: Served) -> None:
    with served.client() as client:
        for method in ("OPTIONS", "GET", "POST"):
            answer = client.request(method, "/v1/models", headers={"Origin": "https://evil.example"})
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_that_leads_here_now_is_not_answered(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    with served.client() as client:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403, host
        for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", "[::1]:80"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_health_is_told_to_simple_checkers(served: Served, guarded: Served) -> None:
    for each in (served, guarded):
        for request in ("GET /health HTTP/1.0\r\n\r\n", "HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with _raw(each, request) as answer:
                assert b" 200 " in answer, request
    with served.client() as client:
        told = client.head("/")
        assert (told.status_code, told.content) == (200, b"")
        assert int(told.headers["content-length"]) > 1000
        assert client.get("/health").json()["status"] == "ready"  # on the same connection: there was no body
        assert client.head("/v1/completions").status_code == 405
    with guarded.client() as client:
        assert client.head("/").status_code == 401
    with _raw(served, "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n") as answer:
        assert b" 400 " in answer


def test_cve_2025_46570_prefixes_of_other_keys_are_not_told_by_time(guarded: Served) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "a secret that is quite long " * 6}]}

    def cached(key: str, **salt: str) -> int:
        return post(guarded, body | salt, key=key).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(KEY) == 0
    assert cached(KEY) >= 160
    assert cached(OTHER_KEY) == 0
    assert cached(KEY, cache_salt="mine") == 0
    assert cached(KEY, cache_salt="mine") >= 160


@pytest.mark.parametrize("salt", ["", 5, None, ["a"], {"a": 1}, "x" * 5000, "\0", "\ud800", "é" * 100, True])
def test_a_strange_cache_salt_kills_nothing(served: Served, salt: Any) -> None:
    text = httpx.Request("POST", "http://x", json=CHAT | {"cache_salt": "SALT"}).content
    body = text.replace(b'"SALT"', json.dumps(salt).encode())
    with served.client() as client:
        answer = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400)
    assert is_well(served)


def test_cve_2025_62164_embeddings_are_not_unpacked(served: Served) -> None:
    body = {"prompt_embeds": "gASVEAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOULg==", "max_tokens": 2}
    assert post(served, body, "/v1/completions").status_code == 400
    assert is_well(served)


def test_nothing_is_ever_unpickled() -> None:
    import tallow.serve

    sources = Path(tallow.serve.__file__).parent.glob("*.py")
    assert not [path for path in sources if re.search(r"\b(pickle|marshal|torch\.load|eval|exec)\(", path.read_text())]


def test_cve_2025_6242_no_address_is_fetched(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x.png"
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            {"type": "file", "file": {"file_data": url}},
        ):
            answer = post(served, CHAT | {"messages": [{"role": "user", "content": [part]}]})
            assert answer.status_code == 400
            assert "text only" in answer.json()["error"]["message"]
        with pytest.raises(TimeoutError):
            listening.accept()


def test_cve_2024_34359_a_template_reaches_nothing(tmp_path: Path, serve: Callable[..., Served]) -> None:
    made = tmp_path / "made-by-the-template"
    reach = f"{{{{ cycler.__init__.__globals__.os.system('touch {made}') }}}}"
    loop = "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}"
    for name, template in (("reach", reach), ("loop", loop)):
        save_model(make_model(tiny(num_layers=1)), make_tokenizer(template), tmp_path / name)
    served = serve(f"--model=reach={tmp_path / 'reach'}", f"--model=loop={tmp_path / 'loop'}")
    for name in ("reach", "loop"):
        answer = post(served, CHAT | {"model": name})
        assert answer.status_code == 400, answer.text
        assert "template" in answer.json()["error"]["message"]
    assert not made.exists()
    assert is_well(served)


def test_ids_are_the_servers_own(served: Served) -> None:
    def ask(_: int) -> str:
        with served.client() as client:
            body = CHAT | {"request_id": "same", "id": "same"}
            answer = client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "same"})
        assert answer.status_code == 200
        return answer.json()["id"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(ask, range(16)))
    assert len(set(ids)) == 16
    assert "same" not in "".join(ids)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_completion_tokens": -(2**63)},
        {"n": -1},
        {"n": 0},
        {"n": 16384},
        {"top_logprobs": -1, "logprobs": True},
        {"top_logprobs": 10**9, "logprobs": True},
        {"top_k": -5},
        {"min_tokens": -1},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": [10**12]},
        {"logit_bias": {"-1": 5}},
        {"logit_bias": {"99999999": 5}},
        {"logit_bias": {"a": 5}},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"seed": 2**70},
        {"stop": ["x"] * 1000},
        {"stop": "x" * 100000},
        {"timeout": -1},
        {"priority": 10**30},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 1000},
        {"tool_choice": "required"},
        {"chat_template_kwargs": 5},
    ],
    ids=str,
)
def test_cve_2026_21869_counts_out_of_bounds_are_refused(served: Served, setting: dict[str, Any]) -> None:
    with served.client() as client:
        data = json.dumps(CHAT | setting)
        answer = client.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "structure",
    [
        {"regex": "("},
        {"regex": "(a{1,1000}){1,1000}{1,1000}"},
        {"regex": "(?=a)b"},
        {"regex": "[" * 10000},
        {"regex": ""},
        {"choice": []},
        {"choice": [5]},
        {"grammar": "start: start start start"},
        {"grammar": "no rule"},
        {"json": {"type": "nonsense"}},
        {"json": {"$ref": "http://127.0.0.1:1/schema.json"}},
        {"json": {"$ref": "#/x"}},
        {"json": "{"},
        {"json": {}, "regex": "a"},
        {"json": {"properties": {f"p{i}": {"type": "string"} for i in range(20000)}}},
    ],
    ids=lambda structure: str(structure)[:40],
)
def test_a_hostile_structure_fails_alone(served: Served, structure: dict[str, Any]) -> None:
    answer = post(served, CHAT | {"structured_outputs": structure})
    assert answer.status_code in (200, 400), answer.text
    assert is_well(served)


def test_a_schema_may_not_be_too_deep(served: Served) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    answer = post(served, CHAT | {"response_format": form})
    assert answer.status_code == 400
    assert "deeper" in answer.json()["error"]["message"]
    with served.client() as client:
        nested = b'{"messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        assert (
            client.post(
                "/v1/chat/completions", content=nested, headers={"Content-Type": "application/json"}
            ).status_code
            == 400
        )
    assert is_well(served)


def test_bodies_are_bounded(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.body_bytes=4000", "--set", "serve.limits.body_s=0.5")
    with served.client() as client:
        assert client.post("/v1/chat/completions", content=b"x" * 5000).status_code == 413
        chunked = (b"x" * 1000 for _ in range(100))
        assert client.post("/v1/chat/completions", content=chunked).status_code == 413
        for length in ("-5", "1e3", "99999999999999999999"):
            with _raw(
                served, f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            ) as answer:
                assert b" 400 " in answer or b" 413 " in answer, answer
    begin = time.monotonic()
    with _raw(served, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{") as answer:
        assert b" 408 " in answer
    assert time.monotonic() - begin < 5
    with _raw(served, "GET /" + "a" * 100_000 + " HTTP/1.1\r\n\r\n") as answer:
        assert b" 400 " in answer or answer == b""
    assert is_well(served)


def test_heads_are_bounded(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.head_s=1")
    header, most = b"x-more: " + b"a" * 1000 + b"\r\n", 8 << 20
    heads = {
        "an address": (b"GET /", b"a" * 1000),
        "headers": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", header),
        "one header": (b"GET /health HTTP/1.1\r\nHost: ", b"a" * 1000),
        "trailers": (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            header,
        ),
        "lines": (b"", b"\r\n" * 500),
        "requests": (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20),
    }
    for name, (begin, more) in heads.items():
        assert _is_closed_on(served, begin, more, most), name
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for first, begin in ((b"", b""), (b"", whole[:9]), (b"", whole[:-2]), (whole, whole[:9])):
        with socket.create_connection(_address(served), timeout=10) as connection:
            connection.sendall(first)
            time.sleep(0.3)
            assert not first or b"ready" in connection.recv(65536)
            connection.sendall(begin)  # and no more
            begun = time.monotonic()
            with suppress(ConnectionError):
                assert (b" 408 " in connection.recv(65536)) == bool(begin)
            assert 0.5 < time.monotonic() - begun < 5, begin
    with socket.create_connection(_address(served), timeout=10) as connection:
        connection.sendall(whole + whole[:9])  # the second has begun before the first is answered
        answers, begun = b"", time.monotonic()
        while part := connection.recv(65536):
            answers += part
        assert b"ready" in answers
        assert b" 408 " in answers
        assert time.monotonic() - begun < 5
    with served.client() as client:
        assert client.get("/health", headers={"X-Large": "a" * 50_000}).status_code == 200
        assert client.post("/v1/completions", json={"prompt": "a" * 500_000}).status_code == 400  # too long, and read
    assert is_well(served)


def _is_closed_on(served: Served, begin: bytes, more: bytes, most: int) -> bool:
    """Whether the server closes before so much has been sent."""
    with socket.create_connection(_address(served), timeout=10) as connection:
        try:
            connection.sendall(begin)
            for _ in range(0, most, len(more)):
                connection.sendall(more)
        except OSError:
            return True
    return False


def _address(served: Served) -> tuple[str, int]:
    return "127.0.0.1", int(served.url.rpartition(":")[2])


def test_the_queue_is_bounded(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.requests=2", "--set", "serve.limits.queued_tokens=600")
    busy = CHAT | {"max_tokens": 400, "ignore_eos": True, "stream": True}
    streams = threading.Barrier(3)

    def hold() -> None:
        with served.client() as client, client.stream("POST", "/v1/chat/completions", json=busy) as answer:
            lines = answer.iter_lines()
            next(lines)
            streams.wait()
            streams.wait()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    streams.wait()
    answer = post(served, CHAT)
    streams.wait()
    for thread in threads:
        thread.join()
    if answer.status_code != 200:  # (the streams may have ended already on a machine that is quick)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
    assert is_well(served)


PATHS_OF_TEXTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/tokenize": lambda text: {"prompt": text},
    "/v1/completions": lambda text: {"prompt": text, "timeout": 2},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/messages/count_tokens": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/embeddings": lambda text: {"input": text},
    "/detokenize": lambda text: {"tokens": [0] * len(text)},
}


def test_what_never_fits_is_refused_and_prompts_of_one_request_take_turns(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.queued_tokens=30000", "--set", "serve.limits.requests=2")
    for path, body in PATHS_OF_TEXTS.items():
        answer = post(served, body("a" * 40_000), path)
        assert answer.status_code == 400, answer.text
        assert "at most 30,000" in answer.text
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        answer = post(served, {field: ["a", "b", "c"]}, path)
        assert answer.status_code == 200, answer.text
    assert is_well(served)


def test_a_long_text_keeps_nobody_waiting(served: Served) -> None:
    pauses, is_over = [], threading.Event()

    def watch() -> None:
        with served.client() as client:
            while not is_over.is_set():
                begin = time.monotonic()
                client.get("/health")
                pauses.append(time.monotonic() - begin)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        begin = time.monotonic()
        answer = post(served, {"prompt": "some words " * 40_000, "return_token_strs": True}, "/tokenize")
        took = time.monotonic() - begin
    finally:
        is_over.set()
        watching.join()
    assert answer.status_code == 200
    assert answer.json()["count"] == 440_000
    assert max(pauses) < 0.5 * took


def test_a_prompt_longer_than_all_tokens_is_not_encoded(served: Served) -> None:
    text = "a" * 20_000
    for path in ("/v1/completions", "/v1/chat/completions"):
        answer = post(served, PATHS_OF_TEXTS[path](text), path)
        assert answer.status_code == 400
        assert "bytes, in 1024 tokens fit at most" in answer.json()["error"]["message"]
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert post(served, {"prompt": text}, "/tokenize").json()["count"] == 20_000


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens", "/v1/chat/completions"])
def test_messages_are_bounded_wherever_they_are_read(served: Served, path: str) -> None:
    answer = post(served, {"messages": [{"role": "user", "content": "a"}] * 2049}, path)
    assert answer.status_code == 400
    assert "at most 2048 messages" in answer.text


def test_a_streamed_request_has_one_deadline(served: Served) -> None:
    body = {"prompt": ["a", "b", "c"] * 9, "max_tokens": 900, "ignore_eos": True, "stream": True, "timeout": 0.4}
    begin = time.monotonic()
    answer = post(served, body, "/v1/completions")
    assert "no answer within 0.4 s" in answer.text
    assert time.monotonic() - begin < 2


def test_no_private_use_character_is_left(served: Served) -> None:
    text = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)]))
    answer = post(served, {"messages": [{"role": "user", "content": text}]}, "/tokenize")
    assert answer.status_code == 400
    assert "private-use" in answer.text


class _raw:  # noqa: N801
    """Bytes to a server, and what it answers until it closes or 3 seconds have passed."""

    def __init__(self, served: Served, text: str) -> None:
        self._address = _address(served)
        self._text = text

    def __enter__(self) -> bytes:
        with socket.create_connection(self._address, timeout=3) as connection:
            connection.sendall(self._text.encode())
            try:
                return connection.recv(65536)
            except (TimeoutError, ConnectionError):
                return b""

    def __exit__(self, *_: object) -> None:
        pass


def test_nothing_is_imported_from_the_working_directory(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server is started others may write: its engine must not run what they call `numpy.py`."""
    marker = tmp_path / "imported"
    for name in ("numpy", "ntpath", "nt", "safetensors", "tallow"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    assert post(serve(by_command=True), CHAT).status_code == 200
    assert not marker.exists()
