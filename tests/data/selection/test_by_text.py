"""Instructions chosen by what their texts tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tallow.cli import app
from tallow.data.instructions.spellings import read_sample, recognise
from tallow.data.quality.classifier import ClassifierConfig, train_classifier
from tallow.data.selection.by_text import read_bounds, select_by_text, texts_of
from tallow.data.selection.chosen import Wanted, wanted
from tallow.errors import DataError, UsageError


def record(prompt: str, response: str) -> dict[str, Any]:
    return {"instruction": prompt, "output": response}


RECORDS = [
    record("say it", "one two three four five"),
    record("say more of it", "la la la la la la la la"),
    record("repeat after me one two three four", "one two three four"),
    record("say", "yes"),
    record("what is a candle", "a light of wax or tallow that burns slowly"),
    record("say it again", "one two three four five six"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def chosen(out: Path) -> list[int]:
    return [RECORDS.index(json.loads(line)) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("by", "much", "expected"),
    [
        ("response_words", Wanted(count=2), [1, 4]),
        ("prompt_words", Wanted(fraction=0.2), [1, 2]),  # two of six, rounded up; of two with four words the first
        ("distinct", Wanted(count=4), [0, 2, 4, 5]),
        ("copied", Wanted(fraction=0.7), [0, 1, 4, 5]),  # of the five that have that score, low ones first
        ("copied", Wanted(count=9), [0, 1, 2, 4, 5]),
    ],
)
def test_the_best_are_taken_in_their_order(
    data: Path, tmp_path: Path, by: Any, much: Wanted, expected: list[int]
) -> None:
    out = tmp_path / "out.jsonl"
    result = select_by_text([data], out, by, much)
    assert chosen(out) == expected
    assert result["selected"] == result["records"] == len(expected)
    assert result["examples"] == 6
    assert sum(each["selected"] for each in result["ranges"]) == len(expected)
    unscored = 0 if by.endswith("words") else 1
    assert result["left_out"] == ({"no score": 1} if unscored else {})
    assert sum(each["examples"] for each in result["ranges"]) == 6 - unscored
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl.scores.jsonl").read_text().splitlines()]
    assert [number for number, line in enumerate(lines) if line["selected"]] == expected
    scores = [line["scores"][by] for line in lines]
    taken, others = (
        [s for n, s in enumerate(scores) if (n in expected) == side and s is not None] for side in (True, False)
    )
    if by == "copied":
        assert max(taken) == result["score"]
        assert not others or min(others) >= max(taken)
    else:
        assert min(taken) == result["score"]
        assert max(others) <= min(taken)
    assert result["best"][0]["selected"]
    assert result["best"][0]["place"] == f"{data.as_posix()}, line {scores.index(result['best'][0]['score']) + 1}"


def test_bounds_come_before_ranks(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    bounds = {"lowest": {"distinct": 0.5, "response_words": 2}, "highest": {"copied": 0.5}}
    result = select_by_text([data], out, "response_words", Wanted(fraction=1.0), **bounds)
    assert chosen(out) == [0, 4, 5]
    assert result["left_out"] == {"distinct below 0.5": 1, "copied above 0.5": 1, "response_words below 2": 1}
    settings = json.loads((tmp_path / "out.jsonl.json").read_text())["settings"]
    assert settings == {
        "by": "response_words",
        "fraction": 1.0,
        "count": None,
        "min": bounds["lowest"],
        "max": bounds["highest"],
        "classifier": None,
    }
    with pytest.raises(DataError, match="nothing to choose from"):
        select_by_text([data], out, "response_words", Wanted(count=1), lowest={"response_words": 100})


def test_a_classifier_chooses_what_it_has_learned(data: Path, tmp_path: Path) -> None:
    good = pa.array([f"a light of wax number {n} that burns" for n in range(40)])
    bad = pa.array([f"one two three four and then {n}" for n in range(40)])
    train_classifier(good, bad, ClassifierConfig(bits=10)).save(tmp_path / "classifier")
    out = tmp_path / "out.jsonl"
    result = select_by_text([data], out, "classifier", Wanted(count=1), classifier=tmp_path / "classifier")
    assert chosen(out) == [4]
    assert result["worst"][0]["score"] < 0.5 < result["score"]
    with pytest.raises(UsageError, match="no classifier"):
        select_by_text([data], out, "classifier", Wanted(count=1))


def test_what_is_learned_is_the_response() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[1]["weight"] = 0
    for fields, expected in (
        ({"messages": messages}, ("a\nb\nc", "d")),
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}, ("a\n\nb", "c")),
        ({"prompt": "a", "completion": "b", "label": False}, ("a", "b")),
    ):
        assert texts_of(read_sample(fields, recognise(fields))) == expected


def test_shares_and_bounds_that_make_no_sense_are_refused(data: Path, tmp_path: Path) -> None:
    for fraction, count, words in ((0.0, None, "fraction of 0"), (None, 0, "count of 0"), (0.5, 2, "and a count")):
        with pytest.raises(UsageError, match=words):
            wanted(fraction, count, 0.05)
    assert wanted(None, None, 0.05).of(30) == 2
    assert wanted(0.1, None, 0.05).of(30) == 3
    for bound in ("distinct", "distinct=", "=1=2"):
        with pytest.raises(UsageError, match="is no bound"):
            read_bounds([bound])
    with pytest.raises(UsageError, match="no score lenght"):
        select_by_text([data], tmp_path / "out.jsonl", "distinct", Wanted(count=1), lowest={"lenght": 1})


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["data", "select", "--by", "response_words", "--data", str(data), "--out", str(out), "--count", "2"]
    app([*arguments, "--min", "distinct=0.5", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["left_out"] == {"distinct below 0.5": 1}
    assert chosen(out) == [4, 5]
    app(arguments, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "best: 9," in shown
    assert "worst: 1," in shown
    assert chosen(out) == [1, 4]
    for wrong in (["--target", str(data)], ["--set", "epochs=1"]):
        with pytest.raises(UsageError, match="say nothing of response_words"):
            app([*arguments, *wrong], standalone_mode=False)
    for wrong, words in (
        (["--by", "influence"], "that on a model"),
        (["--by", "influence", "--min", "copied=1"], "that on a model"),
    ):
        with pytest.raises(UsageError, match=words):
            app([*arguments, *wrong], standalone_mode=False)
