"""Encoders are trained by the same loop: a toy with a known optimum, resume, accumulation, and the whole recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from tests.test_cli import run_tallow
from tests.train.toys import loop_config, new_run
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.encoder import Encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import load_encoder, load_tokenizer
from tallow.models.skeletons import new_model
from tallow.objectives import OBJECTIVES
from tallow.objectives.masked import CHOSEN, MASKED, REPLACED, masked
from tallow.parallel import Layout
from tallow.run import StageRun
from tallow.stages import Recipe, resolve_all, run_recipe
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.pretrain import PretrainConfig
from tallow.train.validation import HeldOut

KINDS = 2
VOCABULARY = KINDS + KINDS**2
MASK = VOCABULARY
LENGTH = 8
OBJECTIVE = partial(masked, mask_id=MASK, ordinary_V=torch.arange(VOCABULARY + 1) < MASK, seed=0)


def pairs(first_number: int, rows: int) -> Packed:
    """Rows in which every second token is any of two, and each token between is the pair of its two neighbours."""
    generator = torch.Generator().manual_seed(first_number)
    singles_BS = torch.randint(0, KINDS, (rows, LENGTH // 2 + 1), generator=generator)
    between_BS = KINDS + KINDS * singles_BS[:, :-1] + singles_BS[:, 1:]
    tokens_BT = torch.stack((singles_BS[:, :-1], between_BS), dim=2).flatten(1)
    tokens_BT = torch.cat((tokens_BT, singles_BS[:, -1:]), dim=1)  # the last is not shown
    documents_BT = torch.zeros_like(tokens_BT, dtype=torch.int32)
    numbers_B = torch.arange(first_number, first_number + rows)
    return Packed(tokens_BT, documents_BT, torch.ones_like(tokens_BT, dtype=torch.bool), numbers_B)


def pair_batches(config: LoopConfig) -> Callable[[int], list[Packed]]:
    def batches(step: int) -> list[Packed]:
        whole = pairs(step * config.batch_size, config.batch_size)
        assert whole.numbers_B is not None
        size = config.micro_batch_size or config.batch_size
        tensors = (whole.tokens_BT, whole.documents_BT, whole.trainable_BT, whole.numbers_B)
        return [Packed(*parts) for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True)]

    return batches


def tiny_encoder(seed: int = 0) -> Encoder:
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 64, "max_positions": LENGTH}
    model = new_model(EncoderConfig.model_validate({"vocab_size": VOCABULARY + 1, **sizes}), seed)
    assert isinstance(model, Encoder)
    return model


def weights(model: Encoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def least_loss() -> float:
    """One token of each row is to be predicted. Its neighbours are as they were, so it is known; but for the last, of
    which only the left one is seen: two tokens are possible, and what is shown in its place may tell which."""
    assert round(CHOSEN * LENGTH) == 1
    kept = 1 - MASKED - REPLACED
    itself, another = kept + REPLACED / VOCABULARY, REPLACED / VOCABULARY  # the chance to show it, if possible at all
    right = -math.log(itself / (itself + (KINDS - 1) * another))
    wrong = -math.log(another / (itself + (KINDS - 1) * another))
    replaced = (right + (KINDS - 1) * wrong + (VOCABULARY - KINDS) * math.log(KINDS)) / VOCABULARY
    return (MASKED * math.log(KINDS) + kept * right + REPLACED * replaced) / LENGTH


def test_reaches_the_least_loss_of_a_language_of_pairs(tmp_path: Path) -> None:
    """From the left alone all four pairs of a row would be as uncertain as the last: four times that loss."""
    config = loop_config(
        steps=300, batch_size=64, learning_rate=1e-2, warmup=0.1, log_every=300, weight_decay=0.0, betas=(0.9, 0.98)
    )
    model = tiny_encoder()
    train(Layout(model), OBJECTIVE, pair_batches(config), config, new_run(tmp_path))
    loss = HeldOut(OBJECTIVE, [pairs(10**6, 4000)])(Layout(model))["validation_loss"]
    assert least_loss() - 0.01 < loss < least_loss() + 0.03


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, precision: str) -> None:
    config = loop_config(save_every=3, precision=precision)
    plain = pair_batches(config)
    whole, whole_run = tiny_encoder(), new_run(tmp_path / "whole")
    train(Layout(whole), OBJECTIVE, plain, config, whole_run)

    def dying(step: int) -> list[Packed]:
        if step == 7:
            raise Stop
        return plain(step)

    with pytest.raises(Stop):
        train(Layout(tiny_encoder()), OBJECTIVE, dying, config, new_run(tmp_path / "parts"))
    model, run = tiny_encoder(seed=7), new_run(tmp_path / "parts")
    train(Layout(model), OBJECTIVE, plain, config, run)
    assert torch.equal(weights(model), weights(whole))
    losses = [[record["loss"] for record in each.metrics()] for each in (run, whole_run)]
    assert losses[0] == losses[1]


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    losses = []
    for size in (None, 1):
        config, run = loop_config(steps=8, micro_batch_size=size), new_run(tmp_path / str(size))
        train(Layout(tiny_encoder()), OBJECTIVE, pair_batches(config), config, run)
        losses.append([record["loss"] for record in run.metrics()])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


WORDS = ["the", "fox", "hen", "owl", "said", "to", "a", "good", "morning", "and", "went", "home"]
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "max_positions": 64}
LOOP = {"steps": 50, "log_every": 1, "batch_size": 4, "sequence_length": 32, "precision": "fp32", "learning_rate": 1e-2}


def settings(place: Path) -> dict[str, Any]:
    return {
        "prepare": {"sources": [str(place / "text.txt")], "split": "paragraphs", "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 270, "mask_token": "<|mask|>"},
        "encode": {},
        "pretrain": {"objective": "masked", "encoder": SHAPE, "loop": LOOP},
    }


def recipe(place: Path, **changes: dict[str, Any]) -> Recipe:
    return Recipe.parse({**settings(place), **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("masked")
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    (directory / "text.txt").write_text("\n\n".join(texts))
    run_recipe(recipe(directory), directory / "run")
    return directory


def test_a_recipe_gives_an_encoder_that_transformers_reads(place: Path) -> None:
    run = StageRun(place / "run" / "pretrain")
    records = run.metrics()
    assert records[-1]["validation_loss"] < records[0]["loss"] - 0.5
    assert "validation_bits_per_byte" not in records[-1]

    path = place / "run" / "pretrain" / "model"
    model, tokenizer = load_encoder(path), load_tokenizer(path)
    assert (model.config.vocab_size, model.config.pad_id) == (270, tokenizer.pad_id)
    assert tokenizer.mask_id is not None
    reference, theirs = AutoModelForMaskedLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert theirs.mask_token_id == tokenizer.mask_id
    ids_BT = torch.tensor([tokenizer.encode("the fox <|mask|> to the hen", parse_special=True)])
    assert (ids_BT == tokenizer.mask_id).sum() == 1
    with torch.no_grad():
        ours = model.logits(model(ids_BT, BidirectionalContext.plain(1, ids_BT.shape[1])))
        torch.testing.assert_close(ours, reference(input_ids=ids_BT).logits, rtol=0, atol=1e-4)


def test_an_encoder_is_not_offered_to_chat_with(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place / "recipe.yaml"
    source.write_text(yaml.safe_dump({"name": "masked", **settings(place)}))
    assert run_tallow(monkeypatch, "run", source, "--run", place / "run") == 0
    printed = capsys.readouterr().out
    assert "report:" in printed
    assert "chat:" not in printed


def test_going_on_from_an_encoder(place: Path, tmp_path: Path) -> None:
    model = str(place / "run" / "pretrain" / "model")
    pretrain = {"objective": "masked", "init": model, "loop": {**LOOP, "steps": 1, "learning_rate": 1e-9}}
    inputs = {"tokens": str(place / "run" / "encode" / "tokens"), "tokenizer": model}
    result = run_recipe(Recipe.parse({"pretrain": {**pretrain, **inputs}}), tmp_path)
    before = StageRun(place / "run" / "pretrain").metrics()[-1]["validation_loss"]
    assert result["pretrain"]["validation_loss"] == pytest.approx(before, abs=1e-4)


def test_what_cannot_succeed_is_refused_at_the_start(place: Path, tmp_path: Path) -> None:
    masked_pretrain = {"objective": "masked", "encoder": SHAPE, "loop": LOOP}
    chat = {"data": [str(place / "text.txt")]}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no mask token", {"tokenizer": {"vocab_size": 270}}),
        ("tune wants a model that continues text", {"tune": chat}),
        ("compress wants a model that continues text", {"compress": {}}),
        ("evaluate wants a model that continues text", {"evaluate": {}}),
        ("sample wants a model that continues text", {"sample": {"prompts": ["fox"]}}),
        ("masked trains no model that pretrain.model", {"pretrain": {**masked_pretrain, "model": {}}}),
        ("causal trains no model that pretrain.encoder", {"pretrain": {**masked_pretrain, "objective": "causal"}}),
        ("init and encoder are both set", {"pretrain": {**masked_pretrain, "init": str(place)}}),
        ("do not fit a context of 16", {"pretrain": {**masked_pretrain, "encoder": {**SHAPE, "max_positions": 16}}}),
    ]
    for words, changes in cases:
        with pytest.raises(UsageError, match=words):
            resolve_all(recipe(place, **changes), tmp_path)


def test_every_objective_can_be_named_and_has_a_shape() -> None:
    assert set(get_args(PretrainConfig.model_fields["objective"].annotation)) == set(OBJECTIVES)
    made = PretrainConfig(tokens=Path("tokens"), tokenizer=Path("tokenizer"), objective="masked")
    assert made.shape == EncoderConfig()
