"""What the server's OpenAPI document says, held against servers that run: with hostile data and with valid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import BaseModel
from tests.engine.conftest import VOCAB_SIZE
from tests.serve.conftest import ADMIN_KEY, KEY, Served, serving

from tallow.serve import responses
from tallow.serve.answers import Question

SERVER_S = 300
NUM_VALID = 15
# Limits are settings of the server, which a schema does not know; and some strings are taken for numbers, as pydantic does.
UNCHECKED = "positive_data_acceptance,negative_data_rejection"
CHUNKS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": responses.ChatCompletionChunk,
    "/v1/completions": responses.CompletionChunk,
}


@pytest.fixture(scope="module")
def guarded(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with an API key and /admin."""
    directory = tmp_path_factory.mktemp("openapi")
    (directory / "keys").write_text(KEY)
    (directory / "admin").write_text(ADMIN_KEY)
    files = ("--keys-file", str(directory / "keys"), "--admin-key-file", str(directory / "admin"))
    with serving(directory / "log", f"--model=tiny={model_path}", *files) as served:
        yield served


def attack(served: Served, directory: Path, key: str | None, *options: str) -> str:
    """What schemathesis says of a server: it fails on a 5xx, an answer that is not as documented, a route that wants no key
    though it is documented to, or a connection that breaks.
    """
    document, config = directory / "openapi.json", directory / "schemathesis.toml"
    with served.client(key) as client:
        document.write_text(client.get("/openapi.json").text)
    schemes = {"key": KEY, "key-header": KEY, "admin-key": ADMIN_KEY} if key is not None else {}
    fields = {"key-header": "api-key"}
    config.write_text(
        "\n".join(f'[auth.openapi.{name}]\n{fields.get(name, "bearer")} = "{value}"' for name, value in schemes.items())
    )
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(document)]
    command += ["--url", served.url, "--exclude-checks", UNCHECKED, "--continue-on-failure", "--seed", "1", "--no-color"]
    done = subprocess.run(
        [*command, *options], cwd=directory, capture_output=True, text=True, timeout=SERVER_S, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert served.health()["status"] == "ready"
    return done.stdout


def test_hostile_requests_are_answered_as_documented(served: Served, tmp_path: Path) -> None:
    said = attack(served, tmp_path, None, "--phases", "coverage")
    assert "/admin" not in (tmp_path / "openapi.json").read_text()
    assert "9 selected / 9 total" in said


def test_hostile_requests_with_keys_are_answered_as_documented(guarded: Served, tmp_path: Path) -> None:
    attack(guarded, tmp_path, KEY, "--phases", "fuzzing", "--max-examples", "8")
    document = json.loads((tmp_path / "openapi.json").read_text())
    for path, operations in document["paths"].items():
        for operation in operations.values():
            schemes = [name for way in operation.get("security", []) for name in way]
            wanted = ["admin-key"] if path.startswith("/admin/") else ["key", "key-header"]
            assert schemes == ([] if path == "/health" else wanted)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_valid_requests_are_answered_as_documented(served: Served, path: str) -> None:
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=NUM_VALID,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(document[path]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.body = within_bounds(case.body)
        response = case.call()
        case.validate_response(response, checks=[not_refused_by_schema])
        statuses[response.status_code] += 1

    ask()
    assert statuses[200] >= NUM_VALID / 2, statuses
