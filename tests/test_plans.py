"""`tallow plan`: from a recipe or from runs to laws, a plot and a table."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.plan.conftest import VOCABULARY, Pretender, make_config, make_tokens
from tests.test_cli import run_tallow

from tallow import plans
from tallow.plan.dial import SizedPretrainConfig
from tallow.plan.scaling import fit_scaling_laws, load_scaling_laws
from tallow.plan.sweep import Sweep
from tallow.report.scaling import predict_best, predict_larger
from tallow.run import StageRun


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a ladder, on tokens beside them."""
    place = tmp_path_factory.mktemp("runs")
    tokens = make_tokens(place / "tokens", 10**9)
    Sweep(make_config(tokens), place / "scaling", Pretender(noise=0.001)).run(3600)
    return place


def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretender:
    pretender = Pretender(noise=0.001)

    def run_stage(_: str, config: Any, run: StageRun) -> dict[str, Any]:
        assert isinstance(config, SizedPretrainConfig)
        return dict(pretender(config, run.directory))

    monkeypatch.setattr(plans, "run_stage", run_stage)
    return pretender


def test_a_recipe_becomes_laws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch)
    tokens = make_tokens(tmp_path / "tokens", 10**9)
    values = {"tokens": str(tokens), "tokenizer": str(tmp_path), "model": {"vocab_size": VOCABULARY}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"pretrain": {**values, "loop": {"precision": "fp32"}}}))
    arguments = ["plan", "scaling", tmp_path / "x.yaml", "--run", tmp_path / "run", "--minutes", "60"]
    assert run_tallow(monkeypatch, *arguments, "--hours", "10", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] >= 13
    assert [choice["hours"] for choice in printed["best"]] == [10]
    for prediction in (*printed["larger"], *printed["best"]):
        assert prediction["low"] < prediction["loss"] < prediction["high"]
    losses = [prediction["loss"] for prediction in printed["larger"]]
    assert losses == sorted(losses, reverse=True)
    laws = load_scaling_laws(tmp_path / "run" / "scaling" / "scaling.json")
    assert laws.loss.law.model_dump() == printed["law"]
    plot = ElementTree.fromstring((tmp_path / "run" / "scaling" / "scaling.svg").read_text())
    assert plot.tag.endswith("svg")

    assert run_tallow(monkeypatch, *arguments) == 0
    assert "best in 24 h" in capsys.readouterr().out


def test_runs_become_laws(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_tallow(monkeypatch, "plan", "scaling", runs / "scaling" / "runs", "--run", tmp_path) == 0
    written = load_scaling_laws(tmp_path / "scaling.json")
    assert written == plans.scale_runs([runs / "scaling" / "runs"])


def test_what_is_best_in_a_time_takes_that_time(runs: Path) -> None:
    laws = plans.scale_runs([runs / "scaling" / "runs"])
    short, long = predict_best(laws, [1, 8])
    assert short.seconds == pytest.approx(3600, rel=0.01)
    assert long.seconds == pytest.approx(8 * 3600, rel=0.01)
    assert (long.loss.loss, -long.parameters) < (short.loss.loss, -short.parameters)
    assert laws == fit_scaling_laws(laws.runs)
    for prediction in predict_larger(laws):
        assert prediction.epochs == pytest.approx(prediction.tokens / 1e9)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x.yaml"], 2, "the recipe has no section pretrain"),
        (["y.yaml"], 3, "encode/tokens does not exist"),
        (["y.yaml", "--minutes", "0"], 2, "0.0 minutes are no time"),
        (["y.yaml", "--hours", "-1"], 2, "-1 hours are no time"),
        (["y.yaml", "somewhere"], 2, "cannot be planned together"),
        (["somewhere"], 3, "somewhere holds no finished pretraining run"),
        (["z.yaml"], 2, "size 'none' is not a number"),
        ([], 2, ""),
    ],
)
def test_mistakes_end_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "x.yaml").write_text("prepare: {sources: [x.txt]}\n")
    (tmp_path / "y.yaml").write_text("tokenizer: {}\nencode: {}\npretrain: {}\n")
    (tmp_path / "z.yaml").write_text("tokenizer: {}\nencode: {}\npretrain: {size: none}\n")
    monkeypatch.chdir(tmp_path)
    assert run_tallow(monkeypatch, "plan", "scaling", *arguments, "--json") == code
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_dial_is_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_tallow(monkeypatch, "pretrain", "--size", "big", "--json") == 2
    assert "size 'big' is not a number of parameters" in json.loads(capsys.readouterr().out)["error"]["message"]
