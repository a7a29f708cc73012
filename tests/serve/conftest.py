"""Real servers: `tallow serve` in processes of their own, with tiny models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.engine.conftest import make_model, make_tokenizer, tiny

from tallow.models.formats import save_model

START_S = 120.0
KEY, ADMIN_KEY = "sk-alpha-1", "sk-admin-9"


@dataclass
class Served:
    """A server that runs.

    Args:
        url: Where.
        process: It.
        log: What it says on standard error.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, key: str | None = None, **options: object) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)  # type: ignore[arg-type]

    def health(self) -> dict[str, object]:
        return httpx.get(f"{self.url}/health", timeout=10).json()

    def engine_pids(self) -> list[int]:
        """Of its engine processes."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[Served]:
    """`tallow serve` with these arguments, ready."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tallow", "serve", "--port", "0", *arguments], stderr=errors, env=environment
        )
    try:
        served = Served(_url(process, log), process, log)
        deadline = time.monotonic() + START_S
        while served.health()["status"] == "loading":
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a token for each byte and a ChatML template; its answers are noise."""
    path = tmp_path_factory.mktemp("serve") / "tiny"
    save_model(make_model(tiny(max_positions=1024, num_layers=2)), make_tokenizer(), path)
    return path


@pytest.fixture(scope="session")
def served(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without keys; its model is `tiny`."""
    with serving(tmp_path_factory.mktemp("log") / "serve.log", f"--model=tiny={model_path}") as found:
        yield found


@pytest.fixture
def serve(tmp_path: Path, model_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server of one's own with more arguments."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(
            serving(tmp_path / f"serve{time.monotonic_ns()}.log", f"--model=tiny={model_path}", *arguments)
        )


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while " at http" not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said.split(" at ")[1].split()[0]
