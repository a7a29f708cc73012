"""The command line: exit codes, JSON on standard output alone, one sentence for each error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import tallow
from tallow import terminal
from tallow.cli import main
from tallow.cli_options import ServeOptions
from tallow.engine import language_model
from tallow.engine.beam_search import BeamParams
from tallow.engine.generation import Generation
from tallow.engine.request import SamplingParams
from tallow.engine.structure import Structure
from tallow.errors import UsageError


def run_tallow(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run a command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["tallow", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


BROKEN = [
    (["run", "none.yaml"], 2, "none.yaml does not exist"),
    (["run", "bad.yaml"], 2, "not valid YAML"),
    (["run", "unknown.yaml"], 2, "unknown section pretrian"),
    (["run", "empty.yaml"], 2, "names no stage"),
    (["run", "x.yaml", "--set", "name=../../evil"], 2, "name"),
    (["prepare", "--set", "prepare.sources=[x.txt]", "--run", "/proc/x"], 2, "/proc/x"),
    (["prepare", "--set", "prepare.sourcez=x"], 2, "unknown setting prepare.sourcez"),
    (["prepare"], 2, "prepare.sources is required"),
    (["prepare", "--set", "prepare"], 2, "section.key=value"),
    (["prepare", "--set", "prepare.sources=[missing.txt]", "--run", "r"], 3, "missing.txt does not exist"),
    (["prepare", "--set", "prepare.sources=[nothing.txt]", "--run", "r"], 3, "empty"),
    (["prepare", "--set", "prepare.sources=[binary.txt]", "--run", "r"], 3, "binary"),
    (["prepare", "--set", "prepare.sources=[latin.txt]", "--run", "r"], 3, "not UTF-8"),
    (["prepare", "--set", "prepare.sources=[cut.jsonl.gz]", "--run", "r"], 3, "cut short"),
    (["pretrain", "--run", "r"], 2, "pretrain.tokens is required"),
    (["generate", "no-such-model", "--prompt", "x"], 3, "no model 'no-such-model'"),
    (["generate", "model", "--prompt", "x"], 3, ""),
    (["evaluate", "no-such-model"], 2, "needs a text"),
    (["report", "no-such-run"], 3, "does not exist"),
    (["run", "x.yaml", "--fresh", "--resume"], 2, ""),
    (["frobnicate"], 2, "frobnicate"),
    (["bench", "tokenizer", "t", "x.txt", "--language-model", "m.bin"], 2, "--language-model tells languages"),
    (["generate"], 2, ""),
    (["generate", "m", "--prompt", "x", "--regex", "a", "--choice", "b"], 2, "both regex and choice"),
    (["generate", "m", "--prompt", "x", "--grammar", "none.lark"], 3, "none.lark does not exist"),
    (["generate", "m", "--prompt", "x", "--set", "typical=0.9"], 2, "unknown setting typical"),
    (["generate", "m", "--prompt", "x", "--set", "typical_p=many"], 2, "typical_p is 'many'"),
    (["generate", "m", "--prompt", "x", "--set", "typical_p=2"], 2, "typical_p is 2"),
    (["generate", "m", "--prompt", "x", "--set", "typical_p"], 2, "key=value"),
    (["generate", "m", "--prompt", "x", "--n", "0"], 2, "'--n'"),
    (["generate", "m", "--prompt", "x", "--length-penalty", "2"], 2, "for beam search"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--n", "3"], 2, "at most 2 answers"),
    (["generate", "m", "--prompt", "x", "--beams", "0"], 2, "'--beams'"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--best-of", "2"], 2, "--beams excludes --best-of"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--temperature", "1"], 2, "excludes --temperature"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--log-probs", "2"], 2, "excludes --log-probs"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--regex", "a"], 2, "excludes --regex"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--choice", "a", "--stop", "b"], 2, "--stop and --choice"),
    (["generate", "m", "--prompt", "x", "--beams", "2", "--set", "dry_multiplier=1"], 2, "--set dry_multiplier"),
    (
        ["generate", "m", "--prompt", "x", "--beams", "2", "--set", "structure={json_object: true}"],
        2,
        "--set structure",
    ),
    (["generate", "m", "--prompt", "x", "--json-schema", "true"], 2, "'true' is no JSON object"),
    (["generate", "m", "--prompt", "x", "--json-schema", "[]"], 2, "'[]' is no JSON object"),
    (["generate", "m", "--prompt", "x", "--json-schema", ""], 2, "'' is no JSON object"),
    (["generate", "m", "--prompt", "x", "--beams", "100"], 2, "num_beams is 100"),
    (["generate", "m", "--prompt", "x", "--threads", "0"], 2, "--threads 0"),
    (["bench", "infer", "m", "--batch", "many"], 2, "'--batch'"),
    (["bench", "infer", "m", "--cache-precision", "q4"], 2, "'--cache-precision'"),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory full of bad input."""
    (tmp_path / "bad.yaml").write_text("a: [1, 2\n")
    (tmp_path / "unknown.yaml").write_text("pretrian: {}\n")
    (tmp_path / "empty.yaml").write_text("name: nothing\n")
    (tmp_path / "x.yaml").write_text("prepare: {sources: [x.txt]}\n")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(bytes.fromhex("1f8b08000000000000ff"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize(("arguments", "code", "message"), BROKEN, ids=[" ".join(case[0]) for case in BROKEN])
def test_every_failure_is_one_object_with_its_exit_code(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    before = {path for path in workplace.rglob("*") if path.is_file()}
    assert run_tallow(monkeypatch, *arguments, "--json") == code
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert set(error) == {"type", "message", "hint"}
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in captured.err
    left = {path for path in workplace.rglob("*") if path.is_file()} - before
    whole = (".prepare.lock", "recipe.yaml", "started.json", "ledger.json")
    kept = {path for path in left if path.parent.name == "work" and path.suffix in (".json", ".arrow")}
    assert {path.name for path in left - kept} <= set(whole), "half-written files"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["data", "classifier", "--good", "a", "b", "--bad", "c", "--out", "o"], "--good"),
        (["data", "select", "m", "--data", "a", "b", "--target", "c", "--out", "o"], "--data"),
        (["extend", "m", "--text", "a", "b", "--out", "o"], "--text"),
    ],
)
def test_several_values_after_an_option_are_told_how_to_be_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    assert run_tallow(monkeypatch, *arguments, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "unexpected extra argument" in error["message"]
    assert f"{option} A {option} B" in error["hint"]


def test_plain_errors_go_to_standard_error_with_a_hint(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tallow(monkeypatch, "report", workplace / "none") == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: run directory")
    assert "→" in captured.err


def test_the_hint_of_a_setting_is_one_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, example in ((["generate", "m", "--prompt", "x"], "typical_p"), (["pretrain"], "pretrain.loop.steps")):
        assert run_tallow(monkeypatch, *command, "--set", "temperature") == 2
        assert f"→ e.g. --set {example}=" in capsys.readouterr().err


def test_debug_shows_the_traceback(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tallow(monkeypatch, "report", workplace / "none", "--debug")
    assert "Traceback" in capsys.readouterr().err


def test_prepare_prints_one_object_and_skips_when_done(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "good.txt").write_text("\n\n".join(f"Paragraph {i} of the text." for i in range(100)))
    command = ["prepare", "--set", "prepare.sources=[good.txt]", "--set", "prepare.split=paragraphs", "--run", "r"]
    outputs = []
    for _ in range(2):
        assert run_tallow(monkeypatch, *command, "--json") == 0
        outputs.append(capsys.readouterr())
    assert json.loads(outputs[0].out) == json.loads(outputs[1].out)
    assert json.loads(outputs[0].out)["documents"] == 100
    assert "done before, unchanged" in outputs[1].err
    assert "done before" not in outputs[0].err


def test_a_directory_that_cannot_be_made_is_a_usage_error(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "good.txt").write_text("Some text.")
    (workplace / "file").write_text("")
    command = ["prepare", "--set", "prepare.sources=[good.txt]", "--set", "prepare.validation_fraction=0"]
    assert run_tallow(monkeypatch, *command, "--run", "file/run", "--json") == 2
    assert "cannot be written" in json.loads(capsys.readouterr().out)["error"]["message"]


class FakeModel:
    """Notes what it is asked for, and has two answers to everything."""

    def __init__(self) -> None:
        self.loaded: tuple[object, ...] = ()
        self.adapters: dict[str, Path] = {}
        self.asked: list[tuple[object, ...]] = []
        self.pieces: Iterable[str] = ["pie", "ces"]

    def load(self, *arguments: object, **options: object) -> FakeModel:
        self.loaded = (*arguments, options)
        return self

    def load_adapter(self, name: str, path: Path) -> None:
        self.adapters[name] = path

    def sample(
        self, prompt: object, params: SamplingParams, n: int, *, best_of: int | None, adapter: str | None
    ) -> list[Generation]:
        self.asked.append((prompt, params, n, best_of, adapter))
        return ANSWERS[:n]

    def beam_search(self, prompt: object, params: BeamParams, *, adapter: str | None) -> list[Generation]:
        self.asked.append((prompt, params, adapter))
        return ANSWERS

    def stream(self, prompt: object, params: SamplingParams, *, adapter: str | None) -> Iterable[str]:
        self.asked.append((prompt, params, adapter))
        return self.pieces


ANSWERS = [
    Generation([1], [2], "two", "stop", [-0.5], 0.0, 0.0, -0.5, [[(2, -0.5), (3, -0.7)]], [-4.0], [[(5, -0.25)]]),
    Generation([1], [3], "three", "length", [-0.75], 0.0, 0.0, -0.75, [[(2, -0.5), (3, -0.7)]], [-4.0], [[(5, -0.25)]]),
]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(language_model, "load", fake.load)
    monkeypatch.setattr(
        terminal,
        "chat",
        lambda _model, params, system, adapter: fake.asked.append((system, params, 1, None, adapter)),
    )
    return fake


SAMPLING = {
    "max_new_tokens": 7,
    "temperature": 0.3,
    "top_k": 11,
    "top_p": 0.8,
    "min_p": 0.05,
    "repetition_penalty": 1.5,
    "seed": 42,
}
OTHER_SAMPLING = {
    "stop_ids": (5, 6),
    "ignore_eos": True,
    "min_new_tokens": 2,
    "typical_p": 0.9,
    "frequency_penalty": 0.25,
    "presence_penalty": -0.25,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_breaker_ids": (13,),
    "logit_bias": {42: -100.0, 7: 0.5},
    "top_log_probs": 3,
    "prompt_log_probs": True,
    "shown_special_ids": (9,),
}


@pytest.mark.parametrize(
    ("command", "prompt"), [(["generate", "m", "--prompt", "x", "--json"], "x"), (["chat", "m"], None)]
)
def test_every_option_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, fake: FakeModel, command: list[str], prompt: str | None
) -> None:
    options = [part for name, value in SAMPLING.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    settings = [part for name, value in OTHER_SAMPLING.items() for part in ("--set", f"{name}={_yaml(value)}")]
    loading = ["--precision", "q8", "--weights", "memory", "--device", "cpu", "--cache-precision", "q8"]
    more = ["--stop", "###", "--stop", "!", "--adapter", "folder", "--speculate", "ngram", "--cache-bytes", "1000"]
    assert run_tallow(monkeypatch, *command, *options, *settings, *loading, *more) == 0
    params = SamplingParams(**SAMPLING, **OTHER_SAMPLING, stop=("###", "!"))
    assert fake.asked == [(prompt, params, 1, None, "folder")]
    elsewhere = {"device": "cpu", "speculate": "ngram", "cache_precision": "q8", "cache_bytes": 1000}
    assert fake.loaded == ("m", "q8", "memory", elsewhere)
    assert fake.adapters == {"folder": Path("folder")}
    reached = {*SAMPLING, *OTHER_SAMPLING, "stop", "structure"}
    assert reached == {field.name for field in fields(SamplingParams)}


def _yaml(value: object) -> str:
    return (
        json.dumps(value)
        if not isinstance(value, dict)
        else "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    )


@pytest.mark.parametrize(
    ("options", "structure"),
    [
        (["--json-schema", '{"type": "integer"}'], Structure(json_schema={"type": "integer"})),
        (["--regex", "a+"], Structure(regex="a+")),
        (["--choice", "yes", "--choice", "no"], Structure(choice=("yes", "no"))),
        (["--grammar", "sums.lark"], Structure(grammar="start: SUM")),
    ],
)
def test_a_structure_reaches_the_engine(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeModel, options: list[str], structure: Structure
) -> None:
    (workplace / "sums.lark").write_text("start: SUM")
    assert run_tallow(monkeypatch, "generate", "m", "--prompt", "x", "--json", *options) == 0
    assert fake.asked == [("x", SamplingParams(structure=structure), 1, None, None)]


STABLE = {"prompt_ids": [1], "ids": [2], "text": "two", "finish_reason": "stop"}
CHOICES = [
    {"ids": [2], "text": "two", "finish_reason": "stop", "score": -0.5},
    {"ids": [3], "text": "three", "finish_reason": "length", "score": -0.75},
]
TOP = {"log_probs": [-0.5], "top_log_probs": [[[2, -0.5], [3, -0.7]]]}
HOT = SamplingParams(temperature=1.0)


@pytest.mark.parametrize(
    ("options", "asked", "result"),
    [
        ([], (SamplingParams(), 1, None, None), STABLE),
        (["--temperature", "1", "--best-of", "3"], (HOT, 1, 3, None), STABLE),
        (["--temperature", "1", "--n", "2"], (HOT, 2, None, None), {"prompt_ids": [1], "choices": CHOICES}),
        (["--log-probs", "0"], (SamplingParams(), 1, None, None), STABLE | {"log_probs": [-0.5]}),
        (["--log-probs", "2"], (SamplingParams(top_log_probs=2), 1, None, None), STABLE | TOP),
        (
            ["--set", "prompt_log_probs=true", "--set", "top_log_probs=1"],
            (SamplingParams(prompt_log_probs=True, top_log_probs=1), 1, None, None),
            STABLE | {"prompt_log_probs": [-4.0], "prompt_top_log_probs": [[[5, -0.25]]]},
        ),
        (["--beams", "2"], (BeamParams(2), None), STABLE),
        (
            ["--beams", "3", "--n", "2", "--length-penalty", "0.5", "--max-new-tokens", "9", "--set", "stop_ids=[4]"],
            (BeamParams(3, 9, 0.5, stop_ids=(4,)), None),
            {"prompt_ids": [1], "choices": CHOICES},
        ),
    ],
)
def test_answers_as_one_object(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: FakeModel,
    options: list[str],
    asked: tuple[object, ...],
    result: dict[str, object],
) -> None:
    assert run_tallow(monkeypatch, "generate", "m", "--prompt", "x", "--json", *options) == 0
    assert fake.asked == [("x", *asked)]
    assert json.loads(capsys.readouterr().out) == result


def test_log_probabilities_are_for_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: FakeModel
) -> None:
    assert run_tallow(monkeypatch, "generate", "m", "--prompt", "x", "--log-probs", "2") == 2
    assert "--json" in capsys.readouterr().err
    assert fake.asked == []


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], "pieces\n"),
        (["--beams", "2"], "two\n"),
        (["--temperature", "1", "--n", "2"], "[1, score -0.500]\ntwo\n\n[2, score -0.750]\nthree\n"),
    ],
)
def test_answers_as_text(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: FakeModel,
    options: list[str],
    shown: str,
) -> None:
    assert run_tallow(monkeypatch, "generate", "m", "--prompt", "x", "--chat", *options) == 0
    assert [prompt for prompt, *_ in fake.asked] == [[{"role": "user", "content": "x"}]]
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(("pieces", "shown"), [([], ""), (["pie"], "pie\n")])
def test_an_error_begins_its_own_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: FakeModel,
    pieces: list[str],
    shown: str,
) -> None:
    def broken() -> Iterator[str]:
        yield from pieces
        raise UsageError("the prompt is empty")

    fake.pieces = broken()
    assert run_tallow(monkeypatch, "generate", "m", "--prompt", "x") == 2
    captured = capsys.readouterr()
    assert captured.out == shown
    assert captured.err.startswith("error: the prompt is empty")


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tallow(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"tallow {tallow.__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_interruption_outside_of_training(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
    number: signal.Signals,
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("tallow.models.formats.convert.convert", interrupted)
    arguments = ["convert", "m", "--to", "gguf", "--out", "o"] + ["--json"] * as_json
    assert run_tallow(monkeypatch, *arguments) == 5
    captured = capsys.readouterr()
    if as_json:
        error = json.loads(captured.out)["error"]
        assert error["type"] == "Interrupted"
        assert "begins anew" in error["hint"]
    else:
        assert "error: interrupted" in captured.err


@pytest.mark.parametrize(("command", "work"), [(["run", "x.yaml"], "run_recipe"), (["prepare", "x.yaml"], "run_stage")])
def test_after_an_interruption_stages_go_on(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    work: str,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (workplace / "x.txt").write_text("some text to prepare")
    monkeypatch.setattr(f"tallow.cli_stages.{work}", interrupted)
    assert run_tallow(monkeypatch, *command, "--json") == 5
    assert json.loads(capsys.readouterr().out)["error"]["hint"] == "run the same command again to go on"


INTERRUPTED_EARLY = """
import os, signal, sys
from tallow.__main__ import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""


def test_an_interruption_while_the_command_line_is_imported() -> None:
    command = [sys.executable, "-c", INTERRUPTED_EARLY, "report", "no-such-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: interrupted")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("as_json", [False, True])
def test_output_that_finds_no_room(workplace: Path, as_json: bool) -> None:
    (workplace / "x.txt").write_text("some text to prepare")
    with open("/dev/full", "w") as full:
        settings = ["--set", "prepare.sources=[x.txt]", "--set", "prepare.validation_fraction=0"]
        arguments = ["prepare", *settings, "--run", "r", *["--json"] * as_json]
        command = [sys.executable, "-c", "from tallow.cli import main; main()", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "error: no space left on the disk while writing the output" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_place_where_a_run_cannot_be(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "x.txt").write_text("some text to prepare")
    (workplace / "r").mkdir()
    (workplace / "r" / "prepare").write_text("a file")
    for place, named in (("r", "r/prepare"), ("long" * 100, "longlong")):
        settings = ["--set", "prepare.sources=[x.txt]", "--set", "prepare.validation_fraction=0"]
        assert run_tallow(monkeypatch, "prepare", *settings, "--run", place) == 2
        assert named in capsys.readouterr().err


@pytest.mark.parametrize("override", ["limits.requests=5", "nosuch=1", "serve=5"])
def test_serve_refuses_sections_that_there_are_not(override: str) -> None:
    with pytest.raises(UsageError, match=r"unknown section|must be a mapping"):
        ServeOptions().settings(None, ["model"], [], [override])


def test_a_tokenizer_is_converted_and_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    vocabulary = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
    (tmp_path / "rwkv.txt").write_text("".join(vocabulary) + "257 ' the' 4\n")
    convert = ["convert", tmp_path / "rwkv.txt", "--to", "tokenizer", "--out", tmp_path / "out", "--json"]
    assert run_tallow(monkeypatch, *convert) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 258
    (tmp_path / "text.txt").write_text("in the end")
    measure = ["bench", "tokenizer", tmp_path / "out", tmp_path / "text.txt"]
    monkeypatch.setattr("tallow.tokenizer.measure.SIZES", (64, 256))
    assert run_tallow(monkeypatch, *measure, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"].keys() == {str(tmp_path / "text.txt")}
    assert found["total"]["tokens"] == 7
    assert found["total"]["tokens_per_word"] == 7 / 3
    assert run_tallow(monkeypatch, *measure) == 0
    assert "text.txt" in capsys.readouterr().out
    languages = ["--by", "language", "--language-model", Path(__file__).parent / "data" / "language" / "tiny.bin"]
    assert run_tallow(monkeypatch, *measure, *languages, "--json") == 0
    assert json.loads(capsys.readouterr().out)["groups"].keys() <= {"rus", "fra", "eng", "cmn"}
    tiktoken = ["convert", tmp_path / "out", "--to", "tiktoken", "--out", tmp_path / "x", "--json"]
    assert run_tallow(monkeypatch, *tiktoken) == 2
    assert not (tmp_path / "x").exists()
