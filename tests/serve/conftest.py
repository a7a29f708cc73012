"""Real servers: `tallow serve` in processes of their own, with tiny models."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.engine.conftest import make_model, make_tokenizer, tiny
from tests.serve.forked import Forked

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
    process: subprocess.Popen[bytes] | Forked
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
def serving(log: Path, *arguments: str, by_command: bool = False) -> Iterator[Served]:
    """`tallow serve` with these arguments, ready.

    Args:
        by_command: Whether it is started as a user does, not forked.
    """
    log.touch()
    process = command(log, *arguments) if by_command else Forked(["--port", "0", *arguments], log)
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


def command(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, started as a user does."""
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tallow", "serve", "--port", "0", *arguments], stderr=errors
        )


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a token for each byte and a ChatML template; its answers are noise."""
    path = tmp_path_factory.mktemp("serve") / "tiny"
    save_model(make_model(tiny(max_positions=1024, num_layers=2)), make_tokenizer(), path)
    return path


@pytest.fixture(scope="session")
def served(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without keys; its model is `tiny`."""
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving(log, f"--model=tiny={model_path}", by_command=True) as found:
        yield found


@pytest.fixture
def serve(tmp_path: Path, model_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server of one's own with more arguments, as `serving` has them."""
    with ExitStack() as stack:

        def start(*arguments: str, by_command: bool = False) -> Served:
            log = tmp_path / f"serve{time.monotonic_ns()}.log"
            return stack.enter_context(serving(log, f"--model=tiny={model_path}", *arguments, by_command=by_command))

        yield start


def _url(process: subprocess.Popen[bytes] | Forked, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while " at http" not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return said.split(" at ")[1].split()[0]
