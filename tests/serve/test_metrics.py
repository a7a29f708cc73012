"""What the server counts; and that the manual and the dashboard name what there is."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.serve.conftest import Served
from tests.serve.scripted import sent

from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream, sse

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = re.compile(r"\b(?:vllm|tallow):[a-z_0-9]+")


def samples(served: Served) -> dict[str, float]:
    """Sums over labels."""
    with served.client() as client:
        text = client.get("/metrics").text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def errors_by_status(served: Served) -> Counter[str]:
    with served.client() as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    [errors] = [family for family in families if family.name == "tallow:errors"]
    counted = [sample for sample in errors.samples if sample.name == "tallow:errors_total"]
    return Counter({sample.labels["status"]: int(sample.value) for sample in counted})


def test_requests_are_counted(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 7, "ignore_eos": True, "n": 2}
    with served.client() as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200  # what is counted exists from now on
        assert client.post("/v1/chat/completions", json={"messages": 5}).status_code == 400
        before = samples(served)
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        assert client.post("/v1/chat/completions", json={"messages": 5}).status_code == 400
    after = samples(served)
    grown = {name: value - before[name] for name, value in after.items() if name in before}
    assert grown["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert grown["vllm:generation_tokens_total"] == usage["completion_tokens"] == 14
    assert grown["vllm:request_success_total"] == 2
    assert grown["vllm:time_to_first_token_seconds_count"] == grown["vllm:e2e_request_latency_seconds_count"] == 1
    assert grown["vllm:prefix_cache_hits_total"] > 0
    assert grown["tallow:errors_total"] == 1
    assert 0 < grown["vllm:time_to_first_token_seconds_sum"] <= grown["vllm:e2e_request_latency_seconds_sum"] < 60


def test_each_error_is_counted(served: Served) -> None:
    chat = {"messages": [{"role": "user", "content": "Say something."}]}

    def errors() -> float:
        return samples(served).get("tallow:errors_total", 0.0)

    with served.client() as client:
        for status, body, headers in (
            (404, chat | {"model": "other"}, {}),
            (404, chat | {"model": "other", "stream": True}, {}),
            (400, {"messages": 5}, {}),
            (400, {"messages": [{"role": "user", "content": "long " * 2000}], "stream": True}, {}),
            (403, chat, {"Host": "evil.example"}),
            (413, {"more": "a" * (9 << 20)}, {}),
        ):
            before = errors()
            assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == status
            assert errors() == before + 1, status


def test_what_is_no_request_is_counted(serve: Callable[..., Served]) -> None:
    served = serve("--set", "serve.limits.head_s=0.5")
    begin = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    for status, text in (
        (400, "no HTTP\r\n\r\n"),
        (400, f"{begin}Content-Length: x\r\n\r\n"),
        (400, f"{begin}Transfer-Encoding: chunked\r\n\r\nno size\r\n"),
        (408, begin),
        (408, begin[:9]),
        (431, f"{begin}X-More: {'a' * 70_000}"),
        (431, f"{begin}Transfer-Encoding: chunked\r\n\r\n0\r\nX-More: {'a' * 70_000}"),
    ):
        before = errors_by_status(served)
        assert status_of(served, text) == status, text[:99]
        assert errors_by_status(served) == before + Counter({str(status): 1}), text[:99]
    before = errors_by_status(served)
    assert status_of(served, "") is None
    assert status_of(served, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    assert errors_by_status(served) == before


def status_of(served: Served, text: str) -> int | None:
    """Of the one answer to what is sent; None: the connection ends without one."""
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(text[:99].encode())
        time.sleep(0.1)
        connection.sendall(text[99:].encode())  # what comes at once with a request's beginning is not counted
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 ") == bool(answer)
    return int(answer.split()[1]) if answer else None


def test_an_error_in_the_midst_of_a_stream_is_counted() -> None:
    counted: list[int] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield sse("more")
        raise ApiError(500, "the engine failed")

    assert b"failed" in asyncio.run(sent(EventStream(events(), lambda error: sse(error.message)), counted.append))
    assert counted == [500]


def test_the_manual_and_the_dashboard_name_metrics_that_there_are(served: Served) -> None:
    known = set(samples(served))
    known |= {name.rsplit("_", 1)[0] for name in known if name.endswith(("_count", "_sum"))}
    for page in ("serving.md", "grafana.json"):
        named = set(NAME.findall((DOCS / page).read_text(encoding="utf-8")))
        assert len(named) > 8
        assert named <= known, page
