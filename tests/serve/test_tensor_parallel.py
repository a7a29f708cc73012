"""A server whose model is spread over two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engine.test_tensor_parallel import children
from tests.serve.conftest import START_S, Served

from tallow.errors import UsageError
from tallow.serve import torchrun
from tallow.serve.settings import ModelSettings, ServeSettings

QUESTION = {"prompt": "One answer, from wherever it comes.", "max_tokens": 24, "temperature": 0, "ignore_eos": True}


def ask(url: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/completions", json=QUESTION, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_two_processes_answer_as_one_and_are_started_again(served: Served, serve: Callable[..., Served]) -> None:
    expected = ask(served.url)["choices"]
    spread = serve("--tensor-parallel", "2")
    assert ask(spread.url)["choices"] == expected
    again = ask(spread.url)
    assert again["choices"] == expected
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
    [leader] = spread.engine_pids()
    [follower] = children(leader, "tallow.engine.follower")
    os.kill(follower, signal.SIGKILL)
    assert ask(spread.url)["choices"] == expected
    assert spread.engine_pids() != [leader]


def test_torchrun_starts_the_processes(served: Served, model_path: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    command = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "tallow"]
    command += ["serve", str(model_path), f"--port={port}"]
    with log.open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-m", *command], stderr=errors, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while "serving" not in log.read_text() or httpx.get(f"{url}/health", timeout=10).status_code != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert ask(url)["choices"] == ask(served.url)["choices"]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.parametrize(
    "settings",
    [
        {"models": {"a": ModelSettings(path="a"), "b": ModelSettings(path="b")}},
        {"models": {"a": ModelSettings(path="a", unload_after_s=1)}},
        {"models": {"a": ModelSettings(path="a", tensor_parallel=3)}},
        {"models": {"a": ModelSettings(path="a")}, "replicas": 2},
    ],
)
def test_what_torchrun_cannot_start(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun"):
        torchrun.spread(ServeSettings(**settings))


def test_a_model_that_cannot_be_spread_is_told(model_path: Path) -> None:
    import tallow

    with pytest.raises(UsageError, match="cannot share evenly"):
        tallow.load(model_path, tensor_parallel=3)
