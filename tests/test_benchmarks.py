"""What the benchmarks print, and that they run."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from benchmarks import optimizers
from benchmarks.mup import best_rates, plot
from benchmarks.mup import markdown as mup_table
from benchmarks.optimizers import Form, Result, Trial
from benchmarks.optimizers import markdown as optimizers_table
from benchmarks.peers.table import Figures, Machine, Results, markdown, ratios, shares
from benchmarks.privacy import Place, Score, score
from benchmarks.privacy import table as privacy_table
from benchmarks.privacy_texts import number_texts
from benchmarks.toxicity import Labelled, group, plain_text

from tallow.errors import TallowError
from tallow.stages import Recipe, run_recipe

FIGURES = Figures("engine 1", 1.0, 1000.0, 100.0, 90.0, 500.0, 200.0, 400.0, 50.0)
MACHINE = [Machine(10e9, 1e12, 4e11), Machine(5e9, 1e12, 4e11), Machine(10e9, 1e12, 4e11)]


def results() -> Results:
    ours = [replace(FIGURES, decode=decode) for decode in (300.0, 100.0, 500.0)]
    q4_0 = [replace(FIGURES, decode=decode) for decode in (100.0, 50.0, 200.0)]
    bf16 = [replace(FIGURES, decode=decode) for decode in (150.0, 20.0, 100.0)]
    figures = {"tallow q4": ours, "llama.cpp q4": q4_0, "llama.cpp bf16": bf16, "tallow fp32": [FIGURES]}
    return Results(MACHINE, figures, {"vllm": "it cannot be installed"}, prefill_flops=2e8)


def test_a_ratio_is_to_the_fastest_of_each_round() -> None:
    assert ratios(results()) == {"decode, 4 bit ÷ llama.cpp's best": [2.0, 2.0, 2.5]}


def test_shares_are_of_the_limit_that_was_measured_in_the_round() -> None:
    prefill, decode = shares(results())["tallow q4"]
    assert prefill == pytest.approx(1000 * 2e8 / 1e12)
    assert decode == pytest.approx(1.5)  # 300 · 50 MB of 10 GB/s, 100 · 50 MB of 5, 500 · 50 MB of 10: the median
    assert shares(results())["tallow fp32"][0] == pytest.approx(1000 * 2e8 / 4e11)


def test_the_table_has_medians_spreads_and_what_is_missing() -> None:
    text = markdown(results())
    assert "| tallow q4: engine 1 | 1,000 (1,000–1,000) | 300 (100–500) |" in text
    assert "| vllm | it cannot be installed |" in text
    assert "| decode, 4 bit ÷ llama.cpp's best | 2.00 | 2.00–2.50 |" in text
    assert "vLLM" not in text.partition("| ratio |")[2]


def test_the_table_has_what_was_tried_the_fastest_first() -> None:
    tried = {"llama.cpp q4": {"Q4_0, no flash attention": 1.5, "Q4_0, flash attention": 1.25}}
    rows = markdown(replace(results(), tried=tried)).partition("| tried before the rounds |")[2].splitlines()
    assert rows[2:] == [
        "| llama.cpp q4 | Q4_0, flash attention | 1.25 |",
        "| llama.cpp q4 | Q4_0, no flash attention | 1.50 |",
    ]


def test_a_table_without_rows_is_left_out() -> None:
    assert "| ratio |" not in markdown(Results(MACHINE, {"tallow q4": [FIGURES]}, {}, 2e8))


def test_learning_rates_lie_around_their_centre() -> None:
    assert Form(200, 3, 3.0, 1, 4).around(3e-3) == [1e-3, 3e-3, 9e-3]


def test_optimizers_stand_by_their_last_loss_with_what_it_took() -> None:
    worse = Trial(1e-3, {1024: 3.0, 2048: 2.5}, 8.0)
    better = Trial(5e-3, {1024: 3.5, 2048: 2.25}, 4.0)
    text = optimizers_table(
        {"adamw": Result(worse, "smallest", (2.5,), (), 0.1), "muon": Result(better, "", (2.25, 2.35), (1.0,), 0.5)}
    )
    assert text.splitlines()[0].startswith("| optimizer | learning rate | loss at 1,024 | loss at 2,048 | seconds |")
    assert text.splitlines()[2:] == [
        "| muon | 0.005 | 3.500 | 2.300 ± 0.050 | 1 | 4.0 |",
        "| adamw | 0.001 (smallest tried) | 3.000 | 2.500 | 0 | 8.0 |",
    ]


def test_the_best_learning_rate_of_each_width_is_marked(tmp_path: Path) -> None:
    losses = {64: {0.125: 3.0, 0.25: 2.5}, 128: {0.125: 2.25, 0.25: inf}}
    assert best_rates(losses) == {64: 0.25, 128: 0.125}
    assert mup_table("usual", losses).splitlines() == [
        "| usual: learning rate | width 64 | width 128 |",
        "|---|---|---|",
        "| 0.12 | 3.000 | **2.250** |",
        "| 0.25 | **2.500** | diverged |",
    ]
    plot({"usual": losses, "mup": losses}, tmp_path / "mup.png")
    assert (tmp_path / "mup.png").stat().st_size > 10_000


def test_an_optimizer_is_tuned_and_its_best_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    def learn(_: Path, name: str, rate: float, form: Form, seed: int = 0) -> Trial:
        assert name == "adamw"
        asked.append((rate, seed))
        if rate > 0.01:
            raise TallowError("training diverged")
        return Trial(rate, {form.steps: 3 - rate - 0.001 * seed}, 8.0)

    monkeypatch.setattr(optimizers, "learn", learn)
    result = optimizers.tune(tmp_path, "adamw", Form(10, 3, 3.0, 2, 1))
    assert (result.best.learning_rate, result.edge, result.diverged) == (0.005, "", (0.015,))
    assert asked == [(0.00167, 0), (0.005, 0), (0.015, 0), (0.005, 1)]
    assert result.last_losses == pytest.approx((2.995, 2.994))


def test_a_trial_trains_with_an_optimizer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The fox said to the hen that {i} owls had come home." for i in range(300)))
    recipe = {"prepare": {"sources": [text], "split": "paragraphs"}, "tokenizer": {"vocab_size": 300}, "encode": {}}
    run_recipe(Recipe.parse(recipe), tmp_path / "data")
    trial = optimizers.learn(tmp_path, "lion", 1e-3, Form(4, 1, 2.0, 1, 2))
    assert list(trial.losses) == [2048, 4096]
    assert trial.state_bytes == pytest.approx(4, rel=0.01)  # a momentum
    again = optimizers.learn(tmp_path, "lion", 1e-3, Form(4, 1, 2.0, 1, 2))
    assert again == trial


def test_found_places_are_scored_by_kind() -> None:
    found = [[Place("email", 0, 5), Place("email", 9, 12)], [Place("ip", 0, 3), Place("phone", 4, 9)]]
    labels = [[Place("email", 3, 8)], [Place("phone", 0, 4), Place("phone", 5, 6)]]
    scores = score(found, labels)
    assert scores["email"] == Score(labelled=1, found=2, recalled=1, right=1)
    assert scores["ip"] == Score(labelled=0, found=1, recalled=0, right=0)
    assert (scores["phone"].precision, scores["phone"].recall) == (1, 0.5)
    assert "| phone | 2 | 1.000 | 0.500 |" in privacy_table({"tallow": scores}).splitlines()


def test_texts_that_share_half_of_their_runs_of_words_are_on_one_side_of_a_test() -> None:
    first = ["one two three four five six", "seven eight nine ten eleven", "yes"]
    second = ["Zero, one two three four five!", "nine ten eleven twelve thirteen fourteen", "YES", "no"]
    groups = group({name: [Labelled(text, True) for text in texts] for name, texts in (("a", first), ("b", second))})
    assert groups["a"][0] == groups["b"][0]
    assert groups["a"][2] == groups["b"][2]
    assert len({*groups["a"].tolist(), *groups["b"].tolist()}) == 5


def test_a_tweet_is_told_by_its_words_alone() -> None:
    assert plain_text('"RT @some_one: you &amp; me http://t.co/xyz"') == ": you & me"


def test_texts_of_numbers_are_the_same_each_time() -> None:
    texts = number_texts(500)
    assert texts == number_texts(500)
    assert {len(text) for text in texts.values()} == {500}
    assert texts["e-mail addresses"].count("@") >= 10
    assert texts["access log, addresses at home"].startswith("10.0.")
