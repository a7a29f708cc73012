"""What the server's OpenAPI document says, held against servers that run: with hostile data and with valid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from tests.serve.conftest import ADMIN_KEY, KEY, Served, serving

SERVER_S = 300
NUM_VALID = 15
# Limits are settings of the server, which a schema does not know; and "1" is taken for 1, as pydantic does.
UNCHECKED = "positive_data_acceptance,negative_data_rejection"
MESSAGES = [{"role": "user", "content": "Say something."}]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {"prompt": ["Say something.", "Say"], "max_tokens": 3},
    "/v1/messages": {"model": "tiny", "messages": MESSAGES, "max_tokens": 3},
    "/v1/responses": {"input": "Say something.", "max_output_tokens": 3},
}
SETTINGS = {
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "min_tokens", "ignore_eos"),
    *("stream_options", "cache_salt", "priority", "user", "logprobs", "echo", "parallel_tool_calls"),
}
"""Those that are independent of each other and of the server's limits."""


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
    """What schemathesis says of a server in which it finds no 5xx, no answer that is not as documented, no route that
    takes requests without the key that it is said to want, and no connection that breaks.
    """
    document, config = directory / "openapi.json", directory / "schemathesis.toml"
    with served.client(key) as client:
        document.write_text(client.get("/openapi.json").text)
    schemes = {"key": KEY, "key-header": KEY, "admin-key": ADMIN_KEY} if key is not None else {}
    fields = {"key-header": "api_key"}
    config.write_text(
        "\n".join(f'[auth.openapi.{name}]\n{fields.get(name, "bearer")} = "{value}"' for name, value in schemes.items())
    )
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(document)]
    bounds = ("--url", served.url, "--exclude-checks", UNCHECKED, "--seed", "1", "--continue-on-failure", "--no-color")
    done = subprocess.run(
        [*command, *bounds, *options], cwd=directory, capture_output=True, text=True, timeout=SERVER_S
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert served.health()["status"] == "ready"
    return done.stdout


def test_hostile_requests_are_answered_as_documented(served: Served, tmp_path: Path) -> None:
    said = attack(served, tmp_path, None, "--phases", "coverage")
    paths = json.loads((tmp_path / "openapi.json").read_text())["paths"]
    assert not any(path.startswith("/admin") for path in paths)
    assert f"Tested: {sum(map(len, paths.values()))}\n" in said


def test_hostile_requests_with_keys_are_answered_as_documented(guarded: Served, tmp_path: Path) -> None:
    attack(guarded, tmp_path, KEY, "--phases", "fuzzing", "--max-examples", "10")
    document = json.loads((tmp_path / "openapi.json").read_text())
    for path, operations in document["paths"].items():
        for operation in operations.values():
            schemes = [name for way in operation.get("security", []) for name in way]
            wanted = ["admin-key"] if path.startswith("/admin/") else ["key", "key-header"]
            assert schemes == ([] if path == "/health" else wanted)


@pytest.mark.parametrize("seed", [9_223_372_036_854_776_000, -9_223_372_036_854_776_000])
def test_the_greatest_seed_is_taken_as_floats_write_it(served: Served, seed: int) -> None:
    body = VALID["/v1/completions"] | {"seed": seed}
    with served.client() as client:
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json=body | {"seed": 2 * seed}).status_code == 400


@pytest.mark.parametrize("path", list(VALID))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_any_valid_settings_are_taken(served: Served, path: str, stream: bool) -> None:
    document: Any = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    kind = "text/event-stream" if stream else "application/json"

    @settings(
        max_examples=NUM_VALID,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(document[path]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        generated: Any = case.body
        body = VALID[path] | {name: value for name, value in generated.items() if name in SETTINGS}
        case.body = body | {"stream": stream}
        response = case.call()
        assert response.status_code == 200, (case.body, response.text)
        assert response.headers["content-type"][0].startswith(kind)
        case.validate_response(response)  # each event, too
        assert response.text.endswith("data: [DONE]\n\n") == (stream and path.endswith("completions"))

    ask()
