"""Instructions from seed tasks: scripted models, servers that fail, kills, and a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from tests.engine.conftest import make_model, make_tokenizer, tiny
from tests.serve.conftest import serving

from tallow.cli import app
from tallow.data.instructions.read import read_samples
from tallow.data.records import Rejected
from tallow.data.synthetic.log import AskLog
from tallow.data.synthetic.self_instruct import SynthesizeConfig, synthesize
from tallow.data.synthetic.writers import Answer, Ask, Endpoint, Local
from tallow.engine.language_model import load
from tallow.errors import DataError, TallowError, UsageError
from tallow.models.formats import save_model

CONFIG = SynthesizeConfig(count=12, max_tokens=64)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    tasks = [
        {
            "instruction": f"Write one sentence about a {thing}",
            "instances": [{"input": "", "output": f"A {thing}."}],
            "is_classification": False,
        }
        for thing in ("dog", "cat", "bird")
    ]
    judged = {
        "instruction": "Say whether the mood of this verse is good.",
        "instances": [{"input": "Joy!", "output": "yes"}],
        "is_classification": True,
    }
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(task) + "\n" for task in [*tasks, judged]))
    return path


def reply(prompt: str, seed: int) -> tuple[str, bool]:
    """What a well-behaved model would say; lists hold something that is left out, and are cut off."""
    if prompt.startswith("Go on"):
        words = ["".join(Random(seed + at).choices("abcdefgh", k=6)) for at in range(6)]
        tasks = [f"Compose {' '.join(words[:4])}", f"Sort {' '.join(words[3:])}", "Draw a map of Spain", "Tell me why"]
        number = int(prompt.rpartition("\n")[2].rstrip("."))
        return "".join(f"{' ' if not at else f'{number + at}. '}{task}\n" for at, task in enumerate(tasks)), False
    instruction = prompt.rpartition("Task: ")[2].partition("\n")[0]
    if prompt.endswith("Classification:"):
        return (" Yes" if instruction.startswith("Sort") else " No"), True
    if prompt.endswith("Class label:"):
        return " short\nInput: a, I\nClass label: long\nInput: lantern", True
    return f"Output: Here it is: {instruction}\nExample 2\nInput: x\nOutput: y", True


class Scripted:
    """Answers by `reply`; after `patience` answers it is killed."""

    def __init__(self, patience: int = 10**9) -> None:
        self.asks: list[Ask] = []
        self.patience = patience

    def write(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        for ask in asks:
            if len(self.asks) == self.patience:
                raise KeyboardInterrupt
            self.asks.append(ask)
            yield Answer(*reply(ask.prompt, ask.seed))


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "instructions.jsonl").read_text().splitlines()]


def test_instructions_are_made_filtered_and_given_instances(seeds: Path, tmp_path: Path) -> None:
    writer = Scripted()
    summary = synthesize(seeds, writer, "m", tmp_path / "out", CONFIG)
    found = records(tmp_path / "out")
    made = {record["instruction"] for record in found}
    assert len(made) == summary["instructions"] >= 12
    assert len(found) == summary["instances"] == 2 * len(made)
    assert all(record["output"] for record in found)
    labelled = [record for record in found if record["is_classification"]]
    assert {record["instruction"].split()[0] for record in labelled} == {"Sort"}
    assert {(record["input"], record["output"]) for record in labelled} == {("a, I", "short"), ("lantern", "long")}
    assert summary["left_out"]["beyond text"] == summary["asks"]["tasks"]
    assert not any("Tell" in instruction for instruction in made), "what is cut off is left out"
    assert summary["asks"]["kinds"] == summary["asks"]["instances"] == len(made)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    first, *_, last = [ask for ask in writer.asks if ask.prompt.startswith("Go on")]
    assert first.prompt.count("\n") == 5, "at first only the seeds can be shown"
    assert any(instruction in last.prompt for instruction in made)
    [*samples] = read_samples(tmp_path / "out" / "instructions.jsonl", Rejected())
    assert len(samples) == len(found)
    assert samples[0].form.spelling == "alpaca"


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_kill_at_any_instant_loses_what_was_under_way(parallel: int, seeds: Path, tmp_path: Path) -> None:
    whole = Scripted()
    expected = synthesize(seeds, whole, "m", tmp_path / "whole", CONFIG, parallel)
    for patience in (0, 1, len(whole.asks) // 3, len(whole.asks) - 1):
        out = tmp_path / f"killed {patience}"
        first, second = Scripted(patience), Scripted()
        with pytest.raises(KeyboardInterrupt):
            synthesize(seeds, first, "m", out, CONFIG, parallel)
        log = max((out / "asked").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        with log.open("ab") as file:
            file.write(b'{"key": "torn')
        assert synthesize(seeds, second, "m", out, CONFIG, parallel) == expected
        assert first.asks + second.asks == whole.asks
        assert (out / "instructions.jsonl").read_bytes() == (tmp_path / "whole" / "instructions.jsonl").read_bytes()
    silent = Scripted(0)
    assert synthesize(seeds, silent, "m", tmp_path / "whole", CONFIG, parallel) == expected
    more = synthesize(seeds, Scripted(), "m", tmp_path / "whole", CONFIG.model_copy(update={"count": 20}), parallel)
    assert more["instructions"] >= 20
    assert records(tmp_path / "whole")[: expected["instances"]] == records(out)


def test_other_settings_and_broken_logs_are_refused(seeds: Path, tmp_path: Path) -> None:
    synthesize(seeds, Scripted(), "m", tmp_path / "out", CONFIG)
    with pytest.raises(UsageError, match=r"other settings \(model\)"):
        synthesize(seeds, Scripted(), "n", tmp_path / "out", CONFIG)
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        synthesize(seeds, Scripted(), "m", tmp_path / "out", CONFIG.model_copy(update={"seed": 1}))
    log = tmp_path / "out" / "asked" / "tasks.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(UsageError, match="line 2 answers something else"):
        synthesize(seeds, Scripted(), "m", tmp_path / "out", CONFIG)
    log.write_text(lines[0] + "{\n" + lines[1])
    with pytest.raises(DataError, match="is broken"):
        AskLog(log, {})


def test_a_model_that_brings_nothing_new_is_given_up(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Same:
        def __init__(self, text: str) -> None:
            self.text = text

        def write(self, asks: Sequence[Ask]) -> Iterator[Answer]:
            return (Answer(self.text, True) for _ in asks)

    config = CONFIG.model_copy(update={"patience": 3})
    summary = synthesize(seeds, Same("Sing a song about rivers"), "m", tmp_path / "a", config)
    assert summary["instructions"] == 1
    assert summary["left_out"]["too much like another"] == 3
    assert "brought nothing new" in capsys.readouterr().err
    with pytest.raises(DataError, match="has made no instruction"):
        synthesize(seeds, Same(""), "m", tmp_path / "b", config)
    (tmp_path / "none.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="is no task"):
        synthesize(tmp_path / "none.jsonl", Same(""), "m", tmp_path / "c", config)


@dataclass
class Request:
    path: str
    number: int
    body: dict[str, Any]
    authorization: str | None


Reply = tuple[int, dict[str, str], bytes]


class Handler(BaseHTTPRequestHandler):
    """Answers what a test says, by path and number of the request."""

    script: Callable[[Request], Reply]
    count = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).count += 1
        status, headers, answer = type(self).script(
            Request(self.path, type(self).count, body, self.headers.get("Authorization"))
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        with suppress(BrokenPipeError):  # who did not want to wait has left
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def endpoint(script: Callable[[Request], Reply]) -> Iterator[str]:
    handler = type("Scripted", (Handler,), {"script": staticmethod(script), "count": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chat_answer(text: str, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


ASK = Ask("Hm?", 7, 0.5, 0.9, 1.5, ("\n",), 3)


def test_an_endpoint_is_asked_as_openais_is() -> None:
    seen: list[tuple[str, dict[str, Any], str | None]] = []

    def script(request: Request) -> Reply:
        seen.append((request.path, request.body, request.authorization))
        if request.path.endswith("/chat/completions"):
            return 200, {}, chat_answer(f"answer {request.number}", "length")
        return 200, {}, json.dumps({"choices": [{"text": "so", "finish_reason": "stop"}]}).encode()

    with endpoint(script) as url:
        assert list(Endpoint(url, "m", key="k").write([ASK])) == [Answer("answer 1", ended=False)]
        assert list(Endpoint(url + "/", "m", "completions").write([ASK])) == [Answer("so", ended=True)]
    settings = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.5, "stop": ["\n"], "seed": 3}
    assert seen == [
        (
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": "Hm?"}], **settings},
            "Bearer k",
        ),
        ("/v1/completions", {"model": "m", "prompt": "Hm?", **settings}, None),
    ]


def test_what_fails_in_passing_is_asked_again_and_no_more_often_than_agreed() -> None:
    def script(request: Request) -> Reply:
        failures = [
            (429, {"Retry-After": "0"}, b'{"error": {"message": "busy"}}'),
            (503, {"Retry-After": "0"}, b"oh"),
        ]
        return failures[request.number - 1] if request.number <= len(failures) else (200, {}, chat_answer("there"))

    with endpoint(script) as url:
        assert list(Endpoint(url, "m", retries=2).write([ASK])) == [Answer("there", ended=True)]
    with (
        endpoint(script) as url,
        pytest.raises(TallowError, match=r"503: Service Unavailable.*asked 2 times") as caught,
    ):
        list(Endpoint(url, "m", retries=1).write([ASK]))
    assert "goes on" in caught.value.hint
    with (
        endpoint(lambda _: (200, {}, b"<html>")) as url,
        pytest.raises(TallowError, match="no answer of OpenAI's API"),
    ):
        list(Endpoint(url, "m", retries=0).write([ASK]))
    with pytest.raises(TallowError, match="does not answer"):
        list(Endpoint("http://127.0.0.1:9/v1", "m", retries=0).write([ASK]))
    wait = threading.Event()

    def slow(_: Request) -> Reply:
        wait.wait(10)
        return 200, {}, chat_answer("late")

    with endpoint(slow) as url:
        with pytest.raises(TallowError, match="timed out"):
            list(Endpoint(url, "m", timeout_s=0.2, retries=0).write([ASK]))
        wait.set()


def test_a_refusal_is_not_asked_again() -> None:
    for status, hint in ((401, "OPENAI_API_KEY"), (404, "name of the model")):
        refusal = b'{"error": {"message": "no such thing"}}'
        with endpoint(lambda _, status=status, refusal=refusal: (status, {}, refusal)) as url:
            with pytest.raises(UsageError, match=f"{status}: no such thing") as caught:
                list(Endpoint(url, "m").write([ASK]))
            assert hint in caught.value.hint
    with pytest.raises(UsageError, match="no address"):
        list(Endpoint("file:///etc", "m").write([ASK]))


def test_a_key_does_not_follow_a_redirect() -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            self.asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    there = {"Location": f"http://127.0.0.1:{server.server_address[1]}/"}
    with endpoint(lambda _: (302, there, b"")) as url, pytest.raises(UsageError, match="302"):
        list(Endpoint(url, "m", key="secret").write([ASK]))
    server.shutdown()
    thread.join()
    server.server_close()
    assert not Elsewhere.asked


def test_many_asks_at_once_are_answered_in_order() -> None:
    barrier = threading.Barrier(3)

    def script(request: Request) -> Reply:
        barrier.wait(10)
        return 200, {}, chat_answer(request.body["messages"][0]["content"])

    asks = [Ask(str(number), 1, 0.0, 1.0, 0.0, (), 0) for number in range(9)]
    with endpoint(script) as url:
        answers = list(Endpoint(url, "m", parallel=3).write(asks))
    assert [answer.text for answer in answers] == [ask.prompt for ask in asks]


def test_the_command_with_an_endpoint(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = set[str | None]()

    def script(request: Request) -> Reply:
        keys.add(request.authorization)
        text, ended = reply(request.body["messages"][0]["content"], request.body["seed"])
        return 200, {}, chat_answer(text, "stop" if ended else "length")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with endpoint(script) as url:
        out = tmp_path / "out"
        arguments = ["data", "synthesize", str(seeds), "--out", str(out), "--model", "m", "--url", url, "--count", "5"]
        app([*arguments, "--set", "max_tokens=32", "--json"], standalone_mode=False)
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["instructions"] >= 5
    assert keys == {"Bearer sk-secret"}
    assert not any("sk-secret" in path.read_text() for path in out.rglob("*.json*"))


def test_a_served_tiny_model_and_a_local_one_say_the_same(seeds: Path, tmp_path: Path) -> None:
    """Its answers are noise, of which the filters leave little, but the way there and back is the real one."""
    path = tmp_path / "tiny"
    save_model(make_model(tiny(max_positions=4096, num_layers=1)), make_tokenizer(), path)
    config = SynthesizeConfig(count=1, max_tokens=12, patience=2, ascii_only=False)
    asks = [Ask("Go on", 12, 0.7, 0.5, 2.0, ("\n17.",), 5), Ask("Yes or no?", 3, 0.0, 1.0, 0.0, ("\n", "Task:"), 0)]
    with serving(tmp_path / "log", f"--model=tiny={path}") as served:
        remote = Endpoint(f"{served.url}/v1", "tiny")
        answers = list(remote.write(asks))
        assert answers == list(Local(load(path)).write(asks))
        assert not answers[0].ended
        continued = list(Endpoint(f"{served.url}/v1", "tiny", "completions").write(asks))
        assert continued == list(Local(load(path), "completions").write(asks))
        with pytest.raises(DataError, match="has made no instruction"):
            synthesize(seeds, remote, "tiny", tmp_path / "out", config)
        assert len((tmp_path / "out" / "asked" / "tasks.jsonl").read_text().splitlines()) == 3
        with pytest.raises(UsageError, match="404"):
            list(Endpoint(f"{served.url}/v1", "huge").write(asks))
