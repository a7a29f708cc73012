"""The commands that look at data, and those that train what scores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.data.test_examine import prose, write_jsonl
from tests.test_cli import run_tallow

from tallow.data.quality.classifier import load_classifier


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`answer("what-if", …)`: what `tallow data what-if … --json` prints."""

    def ask(*arguments: str | Path) -> Any:
        assert run_tallow(monkeypatch, "data", *arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return ask


def test_scorers_are_trained_from_files(answer: Any, tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", [prose(seed) for seed in range(40)])
    bad = write_jsonl(tmp_path / "bad.jsonl", ["zzz " * 30 + str(seed) for seed in range(40)])
    report = answer("classifier", "--good", good, "--bad", bad, "--out", tmp_path / "classifier", "--bits", "12")
    assert (report["good"], report["bad"], report["auc"]) == (40, 40, 1)
    assert {"threshold", "precision", "recall", "kept"} == set(report["points"][0])
    assert load_classifier(tmp_path / "classifier").probabilities(pa.array([prose(99)]))[0] > 0.5
    model = answer("ngrams", good, "--out", tmp_path / "ngrams", "--order", "2")
    assert model["words"] >= 40 * 80


def test_prepared_documents_are_looked_at(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [*(prose(seed) for seed in range(30)), "of the few words"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"prepare: {{sources: [{source}], quality: {{repetition: null, c4: null, fineweb: null}}}}")
    run = tmp_path / "run"
    assert run_tallow(monkeypatch, "prepare", recipe, "--run", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 1
    found = answer("what-if", run, "--set", "quality.gopher.min_words=3")
    assert found["kept"]["now"]["documents"] == 30
    assert found["kept"]["then"]["documents"] == 31
    assert found["dropped"]["gopher.min_words"] == {"now": 1, "then": 0}
    [shown] = answer("show", run, "--fate", "gopher.min_words")["documents"]
    assert shown["text"] == "of the few words"
    assert shown["columns"]["gopher.words"] == 4
    assert shown["broken"] == {"column": "gopher.words", "value": 4, "min": 50, "max": None}
    assert [document["broken"] for document in answer("show", run, "--fate", "kept", "--count", 1)["documents"]] == [
        None
    ]
    assert run_tallow(monkeypatch, "data", "show", run, "--fate", "gopher.min_words") == 0
    said = capsys.readouterr().out
    assert "of the few words" in said
    assert "gopher.min_words: 4 < 50 · " in said
    assert "gopher.mean_word_length" not in said
    assert run_tallow(monkeypatch, "data", "show", run, "--fate", "gopher.min_words", "--metrics") == 0
    assert "gopher.mean_word_length" in capsys.readouterr().out
    assert run_tallow(monkeypatch, "data", "what-if", run, "--set", "quality.gopher.min_words=3") == 0
    assert "-1" in capsys.readouterr().out
    assert run_tallow(monkeypatch, "data", "show", run, "--fate", "kepd") == 2
    assert "kept" in capsys.readouterr().err
