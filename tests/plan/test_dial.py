from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.plan.conftest import LAW, Pretender, make_config, make_tokens

from tallow.errors import DataError, UsageError
from tallow.files import hash_path
from tallow.plan.budget import MAX_EPOCHS
from tallow.plan.dial import SizedPretrainConfig, choose
from tallow.plan.hyper_laws import BATCH_TOKENS, LEARNING_RATE
from tallow.plan.scaling import fit_scaling_laws, save_scaling_laws
from tallow.plan.shapes import count_parameters
from tallow.plan.sweep import Sweep
from tallow.recipe import load_recipe, replace_settings
from tallow.stages import Recipe, resolve, run_recipe

TEXTS = [" ".join(str((i * j) % 7) for j in range(1, 40)) for i in range(60)]


def dialed(config: SizedPretrainConfig) -> SizedPretrainConfig:
    return replace_settings(config, choose(config).settings)


def test_without_laws_the_published_ones_count(tokens: Path) -> None:
    config = dialed(make_config(tokens, size="2m"))
    parameters = count_parameters(config.shape)
    assert parameters.total == pytest.approx(2_000_000, rel=0.1)
    tokens_wanted = 20 * parameters.total
    assert config.token_budget == tokens_wanted
    assert config.loop.learning_rate == pytest.approx(LEARNING_RATE.value(parameters.inner, tokens_wanted), rel=0.01)
    batch = BATCH_TOKENS.value(parameters.inner, tokens_wanted)
    assert config.loop.batch_size == round(batch / 64)


def test_explicit_settings_win(tokens: Path) -> None:
    loop = {"sequence_length": 64, "batch_size": 5, "learning_rate": 0.1}
    model = {"vocab_size": 300, "num_layers": 3}
    config = make_config(tokens, size="2m", token_budget=12345, loop=loop, model=model)
    choice = choose(config)
    assert set(choice.settings) == {
        f"model.{name}" for name in ("hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
    }
    assert dialed(config).shape.num_layers == 3
    assert count_parameters(dialed(config).shape).total == pytest.approx(2_000_000, rel=0.2)


def test_steps_are_a_budget_too(tokens: Path) -> None:
    loop = {"sequence_length": 64, "steps": 100, "batch_size": 8}
    config = dialed(make_config(tokens, size="2m", loop=loop))
    assert config.token_budget is None
    inner = count_parameters(config.shape).inner
    assert config.loop.learning_rate == pytest.approx(LEARNING_RATE.value(inner, 100 * 8 * 64), rel=0.01)


def test_what_is_resolved_leaves_nothing_open(tokens: Path) -> None:
    config = dialed(make_config(tokens, size="2m"))
    again = SizedPretrainConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert choose(again).settings == {}


def test_text_is_seen_four_times_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dialed(make_config(make_tokens(tmp_path / "tokens", 10**6), size="2m"))
    assert config.token_budget == MAX_EPOCHS * 10**6
    assert "4 epochs of 1m" in capsys.readouterr().err


def test_an_encoder_has_a_dial(tokens: Path) -> None:
    config = dialed(make_config(tokens, objective="masked", model=None, encoder={"vocab_size": 300}, size="2m"))
    assert count_parameters(config.shape).total == pytest.approx(2_000_000, rel=0.1)


def test_laws_of_ones_own_are_taken(config: SizedPretrainConfig, tmp_path: Path) -> None:
    laws = fit_scaling_laws(Sweep(config, tmp_path / "scaling", Pretender()).run(3600))
    save_scaling_laws(laws, tmp_path / "scaling.json")
    sized = make_config(config.tokens, size="8m", scaling=tmp_path / "scaling.json")
    chosen = dialed(sized)
    parameters = count_parameters(chosen.shape)
    assert chosen.token_budget == pytest.approx(LAW.best_tokens(parameters.total), rel=0.3)
    assert chosen.loop.learning_rate == pytest.approx(
        LEARNING_RATE.value(parameters.inner, chosen.token_budget or 0) / 4, rel=0.3
    )
    assert "scaling.json" in choose(sized).reason

    other = make_config(make_tokens(tmp_path / "other", 10**8), size="8m", scaling=tmp_path / "scaling.json")
    with pytest.raises(DataError, match="fitted to other tokens"):
        choose(other)


def test_a_size_is_one(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a number of parameters"):
        make_config(tokens, size="big")
    with pytest.raises(UsageError, match="init and size are both set"):
        make_config(tokens, size="2m", model=None, init=tmp_path)


def recipe(place: Path, **pretrain: object) -> Recipe:
    loop = {"sequence_length": 32, "precision": "fp32", "steps": 2, "batch_size": 2}
    (place / "text.txt").write_text("\n\n".join(TEXTS))
    return Recipe.parse(
        {
            "prepare": {"sources": [str(place / "text.txt")], "split": "paragraphs", "validation_fraction": 0.1},
            "tokenizer": {"vocab_size": 264},
            "encode": {},
            "pretrain": {"size": "60k", "loop": loop, **pretrain},
        }
    )


def test_a_run_of_a_size_is_recorded_and_can_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    result = run_recipe(recipe(tmp_path), run)["pretrain"]
    assert result["parameters"] == pytest.approx(60_000, rel=0.2)
    text = (run / "pretrain" / "recipe.yaml").read_text()
    assert "# pretrain.loop.learning_rate was left open; " in text
    assert "taken: size 60k, by published laws" in text
    settings = load_recipe(run / "pretrain" / "recipe.yaml")["pretrain"]
    assert settings["model"]["hidden_size"] == 32
    decided = json.loads((run / "pretrain" / "lineage.json").read_text())["decisions"]
    assert decided["loop.learning_rate"]["value"] == settings["loop"]["learning_rate"]

    resolved = Recipe.load(run / "resolved.yaml")
    capsys.readouterr()
    for same in (recipe(tmp_path), resolved):
        assert run_recipe(same, run)["pretrain"] == result
        assert "pretrain: done before, unchanged" in capsys.readouterr().err
    run_recipe(resolved, other)
    assert hash_path(other / "pretrain" / "model") == hash_path(run / "pretrain" / "model")


def test_an_interrupted_run_keeps_what_it_began_with(tmp_path: Path) -> None:
    """Also if the laws would now say something else."""
    run = tmp_path / "run"
    run_recipe(recipe(tmp_path), run)
    pretrain = run / "pretrain"
    note = json.loads((pretrain / "size.json").read_text())
    note["settings"]["loop.learning_rate"] = 0.007
    (pretrain / "size.json").write_text(json.dumps(note))
    (pretrain / "lineage.json").unlink()
    for checkpoint in (pretrain / "checkpoints").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    run_recipe(recipe(tmp_path), run)
    assert load_recipe(pretrain / "recipe.yaml")["pretrain"]["loop"]["learning_rate"] == 0.007


def test_the_laws_of_a_run_are_found(config: SizedPretrainConfig, tmp_path: Path) -> None:
    values = recipe(tmp_path)
    assert resolve(values, "pretrain", tmp_path).model_dump()["scaling"] is None
    (tmp_path / "scaling").mkdir()
    (tmp_path / "scaling" / "scaling.json").write_text("{}")
    assert resolve(values, "pretrain", tmp_path).model_dump()["scaling"] == tmp_path / "scaling" / "scaling.json"
    broken = make_config(config.tokens, size="2m", scaling=tmp_path / "scaling" / "scaling.json")
    with pytest.raises(DataError, match="holds no scaling laws"):
        choose(broken)
