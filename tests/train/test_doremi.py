"""Weights of domains rise where there is something to learn."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.train.test_pretrain import make_tokenizer

from tallow.data.config import PrepareConfig
from tallow.data.encode import EncodeConfig, encode
from tallow.data.mixing.mixture import MixtureConfig
from tallow.data.mixing.order import MixedOrder
from tallow.data.prepare import prepare
from tallow.errors import DataError, Interrupted, UsageError
from tallow.files import read_json
from tallow.run import StageRun
from tallow.stages import Recipe, run_recipe
from tallow.train.doremi import LearnedMixtureConfig, learn_weights, reweigh
from tallow.train.pretrain import PretrainConfig, pretrain

SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}
DOMAINS = {"chance": ["chance.txt"], "same": ["same.txt"], "words": ["words.txt"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 257)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Letters by chance, of which nothing but their kinds can be learned; one letter; and words, which take time."""
    directory, chance = tmp_path_factory.mktemp("domains"), random.Random(0)
    words = ["candle", "tallow", "wick", "flame", "bright", "shadow", "evening", "kitchen"]
    lines = {
        "chance": lambda: "".join(chance.choices("xyz", k=100)),
        "same": lambda: "q" * chance.randrange(95, 105),
        "words": lambda: " ".join(chance.choices(words, k=15)),
    }
    for name, line in lines.items():
        (directory / f"{name}.txt").write_text("".join(line() + "\n" for _ in range(120)))
    sources = tuple(directory / f"{name}.txt" for name in lines)
    prepare(
        PrepareConfig(sources=sources, split="lines", validation_fraction=0, deduplicate=False), StageRun(directory)
    )
    encode(EncodeConfig(documents=directory / "documents", tokenizer=tokenizer), StageRun(directory))
    return directory / "tokens"


def config(tokens: Path, tokenizer: Path, **loop: Any) -> LearnedMixtureConfig:
    fixed = {
        "steps": 60, "batch_size": 8, "sequence_length": 48, "learning_rate": 5e-3, "precision": "fp32",
        "log_every": 50, "schedule": "constant", "warmup": 0.0,
    }  # fmt: skip
    values = {"tokens": tokens, "tokenizer": tokenizer, "model": SHAPE, "round_steps": 6, "probe_rows": 8}
    mixture = {"domains": DOMAINS, "weights": dict.fromkeys(DOMAINS, 1)}
    return LearnedMixtureConfig.model_validate({**values, "mixture": mixture, "loop": {**fixed, **loop}})


def test_weights_go_where_there_is_something_to_learn(tmp_path: Path, tokens: Path, tokenizer: Path) -> None:
    """Where a model soon does as well as it ever can, no excess is left; words are worse for long."""
    result = learn_weights(config(tokens, tokenizer), StageRun(tmp_path))
    weights = result["weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
    assert weights["words"] > 0.5 > 0.3 > max(weights["chance"], weights["same"])
    learned = MixtureConfig.model_validate_json((tmp_path / "mixture.json").read_bytes())
    assert learned.weights == result["weights"]
    assert learned.domains is not None
    assert set(learned.domains) == set(DOMAINS)


def test_it_goes_on_where_it_was_interrupted(
    tmp_path: Path, tokens: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tokens, tokenizer, steps=9).model_copy(update={"round_steps": 2})
    whole = learn_weights(settings, StageRun(tmp_path / "whole"))
    taken, calls = MixedOrder.numbers, 0

    def stopping(self: MixedOrder, places: range) -> list[int]:
        nonlocal calls
        calls += 1
        if calls in (6, 19):  # in the reference, and in the proxy
            os.kill(os.getpid(), signal.SIGTERM)
        return taken(self, places)

    monkeypatch.setattr(MixedOrder, "numbers", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            learn_weights(settings, StageRun(tmp_path / "parts"))
    assert learn_weights(settings, StageRun(tmp_path / "parts")) == whole
    assert learn_weights(settings, StageRun(tmp_path / "parts")) == whole  # there is nothing left to do


def test_reweighing() -> None:
    weights = reweigh([0.5, 0.25, 0.25], [0.0, 0.6931471805599453, 0.0], 1.0, 1e-9)
    assert weights == pytest.approx([0.4, 0.4, 0.2])
    assert reweigh([1.0, 0.0], [0.0, 0.0], 1.0, 0.1) == pytest.approx([0.95, 0.05])


def test_what_cannot_be_learned_is_refused(tmp_path: Path, tokens: Path, tokenizer: Path) -> None:
    with pytest.raises(UsageError, match="set number of steps"):
        learn_weights(config(tokens, tokenizer, steps=None), StageRun(tmp_path))
    settings = config(tokens, tokenizer)
    out = settings.mixture.model_copy(update={"weights": {"chance": 1.0, "same": 0.0, "words": 1.0}})
    with pytest.raises(UsageError, match="domain same has no tokens or no weight"):
        learn_weights(settings.model_copy(update={"mixture": out}), StageRun(tmp_path))


def test_a_recipe_pretrains_with_what_was_learned(tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    few = {"steps": 12, "batch_size": 4, "sequence_length": 48, "learning_rate": 5e-3, "precision": "fp32"}
    given = {"tokens": str(tokens), "tokenizer": str(tokenizer)}
    recipe = Recipe.parse(
        {
            "mixture": {**given, "model": SHAPE, "round_steps": 6, "probe_rows": 4, "loop": few}
            | {"mixture": {"domains": DOMAINS}},
            "pretrain": {**given, "model": SHAPE, "loop": few},
        }
    )
    run_recipe(recipe, tmp_path)
    learned = read_json(tmp_path / "mixture" / "mixture.json")["weights"]
    taken = read_json(tmp_path / "pretrain" / "mixture.json")
    assert {name: share["weight"] for name, share in taken.items()} == pytest.approx(
        {name: weight / sum(learned.values()) for name, weight in learned.items()}
    )
    (tmp_path / "mixture" / "mixture.json").write_text('{"weights": 7}')
    with pytest.raises(DataError, match="is no mixture"):
        pretrain(
            PretrainConfig(tokens=tokens, tokenizer=tokenizer, learned_mixture=tmp_path / "mixture" / "mixture.json"),
            StageRun(tmp_path / "other"),
        )
