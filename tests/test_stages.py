"""Recipes: inputs come from earlier stages, what is done is skipped, a change reruns what depends on it and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tallow.errors import DataError, UsageError
from tallow.files import hash_path
from tallow.stages import STAGES, Recipe, resolve, resolve_all, run_recipe
from tallow.train import precision

WORDS = ["the", "fox", "hen", "owl", "said", "to", "a", "good", "morning", "and", "went", "home"]
LOOP = {"steps": 2, "batch_size": 2, "sequence_length": 32, "precision": "fp32"}


DONE = {name: stage for name, stage in STAGES.items() if name != "mixture"}
"""What the recipe here names."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stages")
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    (directory / "text.txt").write_text("\n\n".join(texts))
    with (directory / "chat.jsonl").open("w") as file:
        for word in WORDS:
            messages = [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return directory


def recipe(place: Path, **changes: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "prepare": {"sources": [str(place / "text.txt")], "split": "paragraphs"},
        "tokenizer": {"vocab_size": 264},
        "encode": {},
        "pretrain": {
            "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64},
            "loop": LOOP,
        },
        "tune": {"data": [str(place / "chat.jsonl")], "loop": LOOP | {"sequence_length": 128}},
        "compress": {},
        "evaluate": {"window": 32, "max_tokens": 200},
        "sample": {"prompts": ["fox"], "sampling": {"max_new_tokens": 4}},
    }
    for section, settings in changes.items():
        values[section] = values[section] | settings
    return Recipe.parse(values)


def reran(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Stages that were done, not skipped, since the last look."""
    lines = capsys.readouterr().err.splitlines()
    return [name for name in DONE if any(re.fullmatch(rf"{name}: .*/run/{name}", line) for line in lines)]


def test_a_change_reruns_only_what_depends_on_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "run"
    first = run_recipe(recipe(place), run)
    assert reran(capsys) == list(DONE)
    assert run_recipe(recipe(place), run) == first
    assert reran(capsys) == []
    more = {"loop": LOOP | {"sequence_length": 128, "steps": 3}}
    run_recipe(recipe(place, tune=more), run)
    assert reran(capsys) == ["tune", "compress", "evaluate", "sample"]
    run_recipe(recipe(place, tune=more, compress={"bits": 8}), run)
    assert reran(capsys) == ["compress", "evaluate", "sample"]
    run_recipe(recipe(place, tune=more, compress={"bits": 8}, tokenizer={"vocab_size": 266}), run)
    assert reran(capsys) == ["tokenizer", "encode", "pretrain", "tune", "compress", "evaluate", "sample"]
    (place / "text.txt").write_text((place / "text.txt").read_text() + "\n\nOne more paragraph.")
    run_recipe(recipe(place), run)
    assert reran(capsys) == list(DONE)


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_the_resolved_recipe_gives_the_same_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chosen: str
) -> None:
    """Also if the machine would now find another precision to be the faster one."""
    auto = recipe(place, pretrain={"loop": LOOP | {"precision": "auto"}})
    monkeypatch.setattr(precision, "faster", lambda *_: chosen)
    run, other = tmp_path / "run", tmp_path / "other" / "run"
    first = run_recipe(auto, run)
    monkeypatch.setattr(precision, "faster", lambda *_: {"fp32": "bf16", "bf16": "fp32"}[chosen])
    reran(capsys)

    lineage = json.loads((run / "pretrain" / "lineage.json").read_text())
    assert lineage["decisions"]["loop.precision"]["value"] == chosen
    text = (run / "pretrain" / "recipe.yaml").read_text()
    assert re.match(rf"# pretrain\.loop\.precision was left open; {chosen} was taken: a sequence takes .* s in", text)
    resolved = Recipe.load(run / "resolved.yaml")
    assert resolved.stages["pretrain"]["loop"]["precision"] == chosen
    assert "tokens" not in resolved.stages["pretrain"], "an input from the run itself is left to the run"

    for same in (auto, resolved):
        assert run_recipe(same, run) == first
        assert reran(capsys) == []
    run_recipe(resolved, other)
    assert reran(capsys) == list(DONE)
    for name, stage in DONE.items():
        if stage.product not in ("evaluation.json", "samples.json"):  # which name the models' places, and times
            assert hash_path(other / name / stage.product) == hash_path(run / name / stage.product), name


def test_a_stages_own_recipe_can_be_run(place: Path, tmp_path: Path) -> None:
    run_recipe(recipe(place), tmp_path / "run")
    again = Recipe.load(tmp_path / "run" / "compress" / "recipe.yaml")
    result = run_recipe(again, tmp_path / "again")
    assert list(result) == ["compress"]
    assert hash_path(tmp_path / "again/compress/model") == hash_path(tmp_path / "run/compress/model")


def test_a_lost_product_is_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = place / "run"
    run_recipe(recipe(place), run)
    (run / "compress" / "model" / "config.json").unlink()
    reran(capsys)
    run_recipe(recipe(place), run)
    assert reran(capsys)[0] == "compress"


def test_every_stage_leaves_its_account(place: Path) -> None:
    run = place / "run"
    run_recipe(recipe(place), run)
    for name, stage in DONE.items():
        assert (run / name / stage.product).exists()
        lineage = json.loads((run / name / "lineage.json").read_text())
        assert all(len(digest) == 64 for digest in lineage["inputs"].values())
        assert json.loads((run / name / "ledger.json").read_text())["wall_s"] > 0
    assert json.loads((run / "pretrain" / "ledger.json").read_text())["tokens"] == 2 * 2 * 32
    inputs = json.loads((run / "evaluate" / "lineage.json").read_text())["inputs"]
    assert set(inputs) == {"file", "models.pretrain", "models.tune", "models.compress"}


def test_inputs_may_be_named_or_come_from_the_run(tmp_path: Path) -> None:
    named = resolve(Recipe.parse({"compress": {"model": "elsewhere"}}), "compress", tmp_path)
    assert named.model_dump()["model"] == Path("elsewhere")
    from_run = resolve(Recipe.parse({"tune": {"data": "x"}, "compress": {}}), "compress", tmp_path)
    assert from_run.model_dump()["model"] == tmp_path / "tune" / "model"
    with pytest.raises(UsageError, match=r"compress\.model is required"):
        resolve(Recipe.parse({"compress": {}}), "compress", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepare": {"validation_fraction": 0}}, "evaluate has no text"),
        (
            {"tokenizer": {"vocab_size": 10}},
            "tokenizer.vocab_size is 10, but the bytes and special tokens alone are 259",
        ),
        ({"pretrain": {"loop": LOOP | {"sequence_length": 2000}}}, "2,000 tokens do not fit a context of 1,024"),
        ({"tune": {"loop": LOOP | {"sequence_length": 2000}}}, "tune.loop.sequence_length is 2,000, but the context"),
        ({"evaluate": {"window": 2000}}, "evaluate.window is 2,000, but the context"),
        ({"tune": {"data": ["nowhere.jsonl"]}}, "tune.data: nowhere.jsonl does not exist"),
        ({"prepare": {"sources": ["nowhere.txt"]}}, "prepare.sources: nowhere.txt does not exist"),
        (
            {"prepare": {"privacy": {"name": {"model": "nowhere"}}}},
            "prepare.privacy.name.model: nowhere does not exist",
        ),
        (
            {"prepare": {"classifiers": {"good": {"model": "nowhere", "min": 0.5}}}},
            "prepare.classifiers.good.model: nowhere does not exist",
        ),
    ],
)
def test_a_doomed_recipe_is_refused_before_anything_is_done(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=re.escape(message)):
        run_recipe(recipe(place, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_one_stage_rules_out_is_another_matter_with_an_input_of_its_own(place: Path, tmp_path: Path) -> None:
    """A file for evaluate, a model for tune: then the earlier stages' settings say nothing of them."""
    changed = recipe(
        place,
        prepare={"validation_fraction": 0},
        evaluate={"file": str(place / "text.txt")},
        tune={"model": str(place), "loop": LOOP | {"sequence_length": 2000}},
    )
    assert list(resolve_all(changed, tmp_path)) == list(DONE)


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run_recipe(Recipe.parse({"compress": {"model": str(tmp_path / "nowhere")}}), tmp_path / "run")
