"""Two replicas on a Ray of this machine, behind one address."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from tests.serve.conftest import KEY, START_S, Served, serving

from tallow.errors import TallowError
from tallow.serve.prefixes import MOST_BEHIND
from tallow.serve.settings import ModelSettings, ServeSettings

OTHER_KEY = "sk-beta-2"
SETTINGS = ["--replicas=2", "--set=serve.limits.body_bytes=20000"]


@pytest.fixture(scope="module")
def replicated(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("replicas")
    (directory / "keys").write_text(f"alpha:{KEY}\nbeta:{OTHER_KEY}\n")
    arguments = [f"--model=tiny={model_path}", f"--keys-file={directory / 'keys'}", *SETTINGS]
    with serving(directory / "log", *arguments, by_command=True) as served:
        yield served


@pytest.fixture
def client(replicated: Served) -> Iterator[httpx.Client]:
    with replicated.client(KEY) as client:
        yield client


def ask(client: httpx.Client, prompt: str, **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def cached_tokens(answer: httpx.Response) -> int:
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def text(number: int) -> str:
    return f"Story {number}: " + f"it was {number} o'clock, and nobody had come yet. " * 5


def metric(client: httpx.Client, name: str) -> float:
    """Summed over the replicas that have answered something."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    assert lines
    assert all("replica=" in line for line in lines)
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_both_answer_and_each_what_it_has_cached(client: httpx.Client) -> None:
    first = {number: ask(client, text(number)) for number in range(8)}
    assert len({answer.headers["x-replica"] for answer in first.values()}) == 2
    for number in reversed(range(8)):
        again = ask(client, text(number) + "Then?")
        assert again.headers["x-replica"] == first[number].headers["x-replica"]
        assert cached_tokens(again) >= len(text(number)) - 16
    for _ in range(2 * MOST_BEHIND):  # which those that are answered do not count for
        same = ask(client, text(3))
        assert same.headers["x-replica"] == first[3].headers["x-replica"]
        assert same.json()["choices"] == first[3].json()["choices"]
    assert client.get("/metrics").text.count("vllm:generation_tokens_total{") == 2


def test_streams_come_in_pieces_and_end_with_their_client(client: httpx.Client) -> None:
    whole = ask(client, text(1), max_tokens=40).json()["choices"][0]["text"]
    body = {"prompt": text(1), "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    assert len(events) > 1
    assert "".join(orjson.loads(event)["choices"][0]["text"] for event in events) == whole

    long = body | {"max_tokens": 250, "n": 16, "temperature": 1.0}
    before = metric(client, "vllm:generation_tokens_total")
    with client.stream("POST", "/v1/completions", json=long) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 20
    while metric(client, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
    assert metric(client, "vllm:generation_tokens_total") - before < 0.9 * 16 * 250


def test_keys_and_limits_hold(replicated: Served, client: httpx.Client) -> None:
    for path in ("/", "/metrics", "/v1/models", "/nothing"):
        assert httpx.get(f"{replicated.url}{path}").status_code == 401
    assert replicated.client("wrong").post("/v1/completions", json={"prompt": "a"}).status_code == 401
    assert client.post("/admin/anything").status_code == 404
    assert client.post("/v1/completions", json={"prompt": "a" * 20001}).status_code == 413
    refused = client.post("/v1/completions", json={"prompt": "a", "n": 17})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert client.post("/v1/completions", json={"prompt": "a", "model": "other"}).status_code == 404
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_what_the_front_refuses_is_counted(replicated: Served, client: httpx.Client) -> None:
    def counted() -> dict[int, float]:
        lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
        errors = {labels: float(value) for labels, _, value in lines if labels.startswith("tallow:errors_total{")}
        return {status: sum(errors[each] for each in errors if f'status="{status}"' in each) for status in (401, 413)}

    before = counted()
    assert httpx.get(f"{replicated.url}/version").status_code == 401
    assert client.post("/v1/completions", json={"prompt": "a" * 20001}).status_code == 413
    assert counted() == {status: value + 1 for status, value in before.items()}


def test_caches_of_keys_are_apart(replicated: Served, client: httpx.Client) -> None:
    ask(client, text(20))
    assert cached_tokens(ask(client, text(20))) > 0
    with replicated.client(OTHER_KEY) as other:
        other.headers["x-tallow-user"] = "alpha"
        assert cached_tokens(ask(other, text(20))) == 0
        assert cached_tokens(ask(other, text(20))) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_replicas_that_do_not_start_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from tallow.serve.replicas import Front

    def deploy(_front: Front) -> None:
        raise RuntimeError("no replica has become well")

    monkeypatch.setattr(Front, "_deploy", deploy)
    front = Front(ServeSettings(models={"tiny": ModelSettings(path="tiny")}, replicas=2))
    with pytest.raises(TallowError, match="no replica has become well"):
        asyncio.run(front.load())


def test_a_replica_that_dies_is_replaced(replicated: Served, client: httpx.Client) -> None:
    before = set(client.get("/health").json()["replicas"])
    assert len(before) == 2
    victim = replicas(replicated.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    for number in range(4):
        ask(client, text(number))
    deadline = time.monotonic() + START_S
    while len(now := client.get("/health").json()["replicas"]) < 2 or set(now) == before:
        assert client.get("/health").json()["status"] == "ready"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(before & set(now)) == 1
    answers = [ask(client, text(number)) for number in range(30, 40)]
    assert {answer.headers["x-replica"] for answer in answers} == set(now)


def replicas(pid: int) -> list[int]:
    """Processes below one that Ray has started as replicas."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # threads and processes end at any time
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/cmdline").read_text().startswith("ray::ServeReplica"):
                    found.append(child)
                found += replicas(child)
    return found
