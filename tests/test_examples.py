"""The scripts in examples/ run and do what they say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of examples/train_your_own.py."""
    directory = tmp_path_factory.mktemp("examples")
    lines = [
        f"The {animal} said to the {other}: good morning, how do you do today?"
        for animal in ANIMALS
        for other in ANIMALS
    ]
    (directory / "text.txt").write_text("\n\n".join(lines))
    text = load_example("train_your_own").main(directory / "text.txt", directory / "run", steps=30)
    assert text
    return directory / "run"


ANIMALS = ["fox", "hen", "owl", "cat", "dog", "cow", "rat", "bee", "ant", "elk", "jay", "hog", "ram", "ewe", "eel"]


def test_train_your_own(trained: Path) -> None:
    scores = json.loads((trained / "evaluate" / "evaluation.json").read_text())
    assert scores["pretrain"]["bits_per_byte"] < 2.0, "the sentences are nearly all alike"


def test_chat_with_a_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = load_example("chat_with_a_model").main(str(trained), ["The fox said", "And then?"])
    shown = capsys.readouterr().out
    assert len(answers) == 2
    assert all(answer in shown for answer in answers)


def test_tune_with_lora(trained: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox"}]
    (tmp_path / "records.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    before, after = load_example("tune_with_lora").main(
        str(trained), tmp_path / "records.jsonl", tmp_path / "tuned", "Who?", steps=60
    )
    assert before != after
    assert after == "The fox"
    assert (tmp_path / "tuned" / "tune" / "adapter" / "adapter_config.json").exists()


def test_fill_in_a_form(trained: Path) -> None:
    example = load_example("fill_in_a_form")
    forms = example.main(str(trained), ["The fox said good morning.", "The hen was sad."])
    assert len(forms) == 2
    for form in forms:
        jsonschema.validate(form, example.SCHEMA)


def test_choose_among_answers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = load_example("choose_among_answers").main(str(trained), "The fox said")
    shown = capsys.readouterr().out
    drawn, best, searched = ([answer.score for answer in answers] for answers in ways.values())
    assert [len(scores) for scores in (drawn, best, searched)] == [3, 3, 3]
    assert best == sorted(best, reverse=True)
    assert best[0] >= max(drawn), "the three are among the twelve"
    assert searched[0] > best[0], "the likeliest is seldom drawn"
    assert all(repr(answer.text) in shown for answers in ways.values() for answer in answers)


def test_a_mistake_ends_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "chat_with_a_model.py"), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"there is no model '{tmp_path / 'nowhere'}' here: check the path\n"
