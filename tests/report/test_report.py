"""Reports: what a run's files say stands in the table and on the page, and nothing in them is taken for markup."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest

from tallow.errors import DataError
from tallow.files import write_json
from tallow.recipe import Section
from tallow.report.page import write_report
from tallow.report.plots import bars, training_curves
from tallow.report.summary import StageSummary, summarize
from tallow.report.units import format_value
from tallow.run import StageRun


class Config(Section):
    note: str = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three stages."""
    directory = tmp_path / "my run"
    pretrain = StageRun(directory / "pretrain", price_per_hour=36000.0)
    pretrain.begin("pretrain", Config(), {})
    for step in range(1, 6):
        pretrain.log(step=step * 10, loss=5.0 / step, learning_rate=1e-3, validation_loss=6.0 / step)
    (directory / "pretrain" / "model").mkdir()
    (directory / "pretrain" / "model" / "config.json").write_text("{}")
    pretrain.finish("f", {"tokens": "ab" * 32}, directory / "pretrain" / "model", {"parameters": 5475584, "loss": 1.0})
    evaluate = StageRun(directory / "evaluate")
    evaluate.begin("evaluate", Config(), {})
    score = {"bits_per_byte": 1.2345, "perplexity": 9.5, "tokens": 1000}
    write_json(directory / "evaluate" / "evaluation.json", {"pretrain": score})
    evaluate.finish("f", {}, directory / "evaluate" / "evaluation.json", {"pretrain_bits_per_byte": 1.2345})
    sample = StageRun(directory / "sample")
    sample.begin("sample", Config(), {})
    answers = [{"prompt": "Who <b>are</b> you?", "answer": "[red]I & you[/red]", "finish_reason": "stop"}]
    write_json(directory / "sample" / "samples.json", {"model": "m", "samples": answers})
    sample.finish("f", {}, directory / "sample" / "samples.json", {"samples": 1})
    return directory


def test_the_summary_adds_up(run: Path) -> None:
    summary = summarize(run)
    assert [stage.name for stage in summary.stages] == ["pretrain", "evaluate", "sample"]
    assert summary.model == run / "pretrain" / "model"
    assert summary.total()["cost"] == pytest.approx(summary.stages[0].ledger["wall_s"] * 10)
    assert summary.stages[0].result_text() == "parameters 5,475,584 · loss 1"
    json.dumps(summary.as_json())


def test_the_page_has_it_all_and_escapes_it(run: Path) -> None:
    page = write_report(summarize(run)).read_text()
    assert page.count("<svg") == 2, "a loss curve and a quality bar"
    assert "1.2345" in page
    assert "Who &lt;b&gt;are&lt;/b&gt; you?" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "the page fetches nothing"
    html.parser.HTMLParser().feed(page)
    assert write_report(summarize(run)).read_text() == page, "the same run gives the same page"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            summarize(path)


def test_a_curve_needs_two_points() -> None:
    assert training_curves([]) is None
    assert training_curves([{"step": 1, "loss": 2.0}]) is None
    curve = training_curves([{"step": 1, "loss": 2.0}, {"module": "x"}, {"step": 2, "loss": 1.0}])
    assert curve is not None
    assert curve.startswith("<svg")
    assert "held-out" not in curve


def test_bars_name_their_values() -> None:
    drawn = bars({"pretrain": 1.5, "compress": 1.625}, "bits per byte")
    assert "1.625" in drawn
    assert "compress" in drawn


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model_bytes", 3_600_000, "3.6 MB"),
        ("bytes", 12, "12 B"),
        ("wall_s", 12.34, "12.3 s"),
        ("wall_s", 200.0, "3 min 20 s"),
        ("tokens_per_s", 5602.4, "5,602"),
        ("flops", 1.5e15, "1.5 PFLOP"),
        ("energy_j", 1500.0, "1.5 kJ"),
        ("documents", 3413, "3,413"),
        ("loss", 1.23456, "1.235"),
        ("name", "x", "x"),
        ("flag", True, "True"),
    ],
)
def test_values_carry_their_units(name: str, value: object, text: str) -> None:
    assert format_value(name, value) == text


def test_weights_of_domains_are_told_the_largest_first() -> None:
    def said(weights: dict[str, float]) -> str:
        result = {"weights": weights, "excess": dict.fromkeys(weights, 0.1), "rounds": 4}
        return StageSummary("mixture", result, {}, {}, {}, []).result_text()

    assert said({"code": 0.379, "books": 0.621}) == "books 62.1% · code 37.9% · rounds 4"
    assert said({f"d{number}": number / 45 for number in range(10)}).endswith("d2 4.4% · 2 more · rounds 4")
