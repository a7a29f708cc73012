from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from tallow.data.config import PrepareConfig
from tallow.data.encode import EncodeConfig, encode
from tallow.data.mixing.mixture import MixtureConfig
from tallow.data.mixing.order import MixedOrder
from tallow.data.prepare import prepare
from tallow.errors import CapacityError, DataError, Interrupted, UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.formats import load_model, load_tokenizer
from tallow.models.initialization import Mup
from tallow.models.skeletons import new_model
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.pretrain import PretrainConfig, pretrain

SENTENCE = "The candle gives light. "
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 257)


def make_tokenizer(directory: Path, size: int) -> Path:
    """Bytes, and what `size` leaves for merges; the end token is 0."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator([SENTENCE], trainer)
    Tokenizer.from_backend(backend, eos_token="<|end|>").save(directory)
    return directory


def encode_texts(directory: Path, tokenizer: Path, texts: list[str], validation_fraction: float) -> Path:
    (directory / "texts").mkdir(parents=True)
    for number, text in enumerate(texts):
        (directory / "texts" / f"{number:04}.txt").write_text(text)
    sources = (directory / "texts",)
    prepare(PrepareConfig(sources=sources, validation_fraction=validation_fraction), StageRun(directory))
    encode(EncodeConfig(documents=directory / "documents", tokenizer=tokenizer), StageRun(directory))
    return directory / "tokens"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    texts = [f"{number}. " + SENTENCE * 12 for number in range(40)]
    return encode_texts(tmp_path_factory.mktemp("tokens"), tokenizer, texts, 0.2)


Make = Callable[..., PretrainConfig]


@pytest.fixture
def config(tokens: Path, tokenizer: Path) -> Make:
    def make(loop: dict[str, Any] | None = None, **settings: Any) -> PretrainConfig:
        fixed = {"batch_size": 4, "sequence_length": 64, "learning_rate": 1e-2, "precision": "fp32", "steps": 4}
        values = {"tokens": tokens, "tokenizer": tokenizer, "model": SHAPE, "validation_tokens": 512, **settings}
        return PretrainConfig.model_validate({**values, "loop": {**fixed, **(loop or {})}})

    return make


def test_text_is_learned_and_the_model_can_be_used(tmp_path: Path, config: Make, tokenizer: Path) -> None:
    run = StageRun(tmp_path)
    result = pretrain(config({"steps": 60, "validate_every": 20}), run)
    assert result["steps"] == 60
    assert result["tokens"] == 60 * 4 * 64
    assert result["validation_loss"] < 1.5
    curve = [record["validation_loss"] for record in run.metrics() if "validation_loss" in record]
    assert curve == sorted(curve, reverse=True)
    assert len(curve) == 3

    model, loaded = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    assert result["parameters"] == model.num_parameters()
    assert loaded.fingerprint == Tokenizer.load(tokenizer).fingerprint
    assert model.config.vocab_size == loaded.vocab_size
    assert model.config.eos_ids == (loaded.eos_id,)
    assert next(model.parameters()).dtype == torch.float32


def test_validation_is_what_the_model_gives_to_held_out_text(tmp_path: Path, config: Make, tokens: Path) -> None:
    result = pretrain(config(validation_tokens=10**6), StageRun(tmp_path))
    model = load_model(tmp_path / "model")
    [shard] = sorted(path for path in (tokens / "validation").glob("shard-*.npy") if "documents" not in path.name)
    ids = torch.from_numpy(np.load(shard).astype(np.int64))
    ends = (ids == 0).nonzero().flatten().tolist()
    nats, targets, text_bytes = 0.0, 0, 0
    starts = [0, *(end + 1 for end in ends[:-1])]
    for window in range(0, len(ids) - 1, 64):
        stop = min(window + 65, len(ids))
        cuts = sorted({window, stop, *(start for start in starts if window < start < stop)})
        for begin, end in itertools.pairwise(cuts):
            piece = ids[begin:end][None]
            if piece.shape[1] < 2:
                continue
            with torch.no_grad():
                hidden = model(piece[:, :-1], SequenceContext.plain(1, piece.shape[1] - 1))
                log_probs = model.logits(hidden).log_softmax(-1)
            nats -= log_probs.gather(-1, piece[:, 1:, None]).sum().item()
            targets += piece.shape[1] - 1
            text_bytes += int((piece[:, 1:] != 0).sum())  # a token is a byte, the end token none
    assert result["validation_loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert result["validation_bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_going_on_from_a_model(tmp_path: Path, config: Make) -> None:
    first = pretrain(config({"steps": 30}), StageRun(tmp_path / "first"))
    init = tmp_path / "first" / "model"
    second = StageRun(tmp_path / "second")
    pretrain(config({"steps": 2, "log_every": 1}, model=None, init=init), second)
    assert second.metrics()[0]["loss"] < first["loss"] + 0.3


def test_a_model_grows_and_goes_on(tmp_path: Path, config: Make) -> None:
    first = pretrain(config({"steps": 30}), StageRun(tmp_path / "first"))
    second = StageRun(tmp_path / "second")
    growth = {"hidden_size": 64, "num_layers": 2, "num_experts": 2}
    loop = {"steps": 2, "log_every": 1, "learning_rate": 1e-3}
    result = pretrain(config(loop, model=None, init=tmp_path / "first" / "model", grow=growth), second)
    assert second.metrics()[0]["loss"] < first["loss"] + 0.3
    model = load_model(second.directory / "model")
    assert (model.config.family, model.config.hidden_size, model.config.num_layers) == ("mixtral", 64, 2)
    assert result["parameters"] == model.num_parameters() > 4 * first["parameters"]


def test_half_precision_model_if_wished(tmp_path: Path, config: Make) -> None:
    pretrain(config({"steps": 1}, save_dtype="bf16"), StageRun(tmp_path))
    assert {parameter.dtype for parameter in load_model(tmp_path / "model").parameters()} == {torch.bfloat16}


def test_steps_follow_from_the_tokens(tmp_path: Path, config: Make) -> None:
    budget = pretrain(config({"steps": None}, token_budget=600), StageRun(tmp_path / "budget"))
    assert budget["steps"] == 3  # 256 a step
    once = pretrain(config({"steps": None, "batch_size": 32, "micro_batch_size": 8}), StageRun(tmp_path / "once"))
    assert once["steps"] == 5  # a good 10,000 tokens


def test_documents_packed_whole_are_learned_in_as_many_rows_as_they_need(
    tmp_path: Path, config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = {"steps": None, "sequence_length": 400}
    result = pretrain(config(loop, packing="best_fit"), StageRun(tmp_path / "whole"))
    assert result["steps"] == 9  # some 32 documents of about 292 tokens, a row each
    assert "best fit: 3" in capsys.readouterr().err
    cut = pretrain(config(loop, packing="concatenate"), StageRun(tmp_path / "cut"))
    assert cut["steps"] < result["steps"]
    assert result["validation_loss"] < 5


def test_growing_batches_take_the_same_tokens_in_more_steps(tmp_path: Path, config: Make) -> None:
    run = StageRun(tmp_path)
    ramp = {"batch_size": 8, "batch_ramp": {"start": 2, "share": 0.5}, "log_every": 1}
    result = pretrain(config({"steps": None, **ramp}, token_budget=48 * 64), run)
    tokens = [0, *(record["tokens"] // 64 for record in run.metrics())]
    assert [after - before for before, after in itertools.pairwise(tokens)] == [2, 2, 2, 2, 4, 4, 6, 6, 8, 8, 8]
    assert result["tokens"] == 52 * 64


def test_without_held_out_text_there_is_no_validation(
    tmp_path: Path, config: Make, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = encode_texts(tmp_path / "data", tokenizer, [SENTENCE * 20], 0.0)
    result = pretrain(config({"steps": 1}, tokens=tokens), StageRun(tmp_path))
    assert "validation_loss" not in result
    assert "no held-out text" in capsys.readouterr().err


def test_a_mixture_of_experts(tmp_path: Path, config: Make) -> None:
    result = pretrain(config(model={**SHAPE, "family": "mixtral", "num_experts": 4}), StageRun(tmp_path))
    assert result["loss"] < 5.5
    model = load_model(tmp_path / "model")
    assert (model.config.num_experts, model.config.router_balance) == (4, "loss")
    assert result["parameters"] - model.num_active_parameters() == 2 * 3 * 32 * 64


def test_an_initialization_and_the_learning_rates_that_belong_to_it(tmp_path: Path, config: Make) -> None:
    mup = {"name": "mup", "base": {"hidden_size": 16, "num_kv_heads": 1}}
    wide = {**SHAPE, "num_kv_heads": 2}
    models = {}
    runs: list[tuple[str, Any, dict[str, float]]] = [
        ("usual", None, {}),
        ("mup", mup, {}),
        ("slower", mup, {"layers.*": 0.1}),
    ]
    for name, initialization, factors in runs:
        loop = {"steps": 1, "warmup": 0, "schedule": "constant", "learning_rate_factors": factors}
        pretrain(config(loop, model=wide, initialization=initialization), StageRun(tmp_path / name))
        models[name] = load_model(tmp_path / name / "model")
    start = new_model(models["mup"].config, 0, Mup.model_validate(mup))
    moved = {
        name: {
            part: (model.get_parameter(part) - start.get_parameter(part)).detach().abs().median().item()
            for part in ("norm.weight", "layers.0.attention.q_proj.weight")
        }
        for name, model in models.items()
    }
    assert moved["mup"]["layers.0.attention.q_proj.weight"] == pytest.approx(5e-3, rel=0.01)
    assert moved["mup"]["norm.weight"] == pytest.approx(5e-3, rel=0.01)
    assert moved["slower"]["layers.0.attention.q_proj.weight"] == pytest.approx(5e-4, rel=0.05)
    assert moved["slower"]["norm.weight"] == pytest.approx(5e-3, rel=0.01)
    assert models["usual"].norm.weight.mean().item() == pytest.approx(1.0, abs=0.02)


def test_what_does_not_fit_is_refused(tmp_path: Path, config: Make) -> None:
    run = StageRun(tmp_path / "run")
    other = make_tokenizer(tmp_path / "other", 260)
    with pytest.raises(DataError, match="not made by the tokenizer"):
        pretrain(config(tokenizer=other), run)
    with pytest.raises(UsageError, match="2,000 tokens do not fit a context of 1,024"):
        pretrain(config({"sequence_length": 2000}), run)
    with pytest.raises(UsageError, match="vocabulary 100"):
        pretrain(config(model={**SHAPE, "vocab_size": 100}), run)
    with pytest.raises(UsageError, match="format of llama cannot express this model: num_experts"):
        config(model={**SHAPE, "num_experts": 4})
    with pytest.raises(UsageError, match="both set"):
        pretrain(config(init=tmp_path), run)
    with pytest.raises(UsageError, match="no model that could grow"):
        config(grow={"num_layers": 2})
    with pytest.raises(UsageError, match="init and initialization are both set"):
        config(init=tmp_path, model=None, initialization="plain")
    mup = {"name": "mup", "base": {"hidden_size": 16, "num_kv_heads": 1}}
    with pytest.raises(UsageError, match="heads of 16 entries would be heads of 8"):
        config(initialization={"name": "mup", "base": {**mup["base"], "num_heads": 2}})
    with pytest.raises(UsageError, match="Adam and its kin, not of muon"):
        config({"optimizer": "muon"}, initialization=mup, model={**SHAPE, "num_kv_heads": 2})
    with pytest.raises(CapacityError, match="GB"):
        pretrain(config(model={**SHAPE, "hidden_size": 65536, "num_layers": 200}), run)
    with pytest.raises(DataError, match="manifest"):
        pretrain(config(tokens=tmp_path), run)
    with pytest.raises(DataError, match="does not exist"):
        pretrain(config(init=tmp_path / "nothing", model=None), run)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Documents of two files: one of `a`, the other, which is larger, of `b`."""
    directory = tmp_path_factory.mktemp("two")
    for name, lines in (("a", 20), ("b", 60)):
        text = "".join(f"{name * 20} {number:03} {name * 76}\n" for number in range(lines))
        (directory / f"{name}.txt").write_text(text)
    sources = (directory / "a.txt", directory / "b.txt")
    prepare(PrepareConfig(sources=sources, split="lines", validation_fraction=0.05), StageRun(directory))
    encode(EncodeConfig(documents=directory / "documents", tokenizer=tokenizer), StageRun(directory))
    return directory / "tokens"


def test_a_mixture_is_trained_on_and_gone_on_with(
    tmp_path: Path, config: Make, two_sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = {"domains": {"a": ["a.txt"], "b": ["b.txt"]}, "weights": {"a": 3, "b": 1}}
    settings = config(
        {"steps": 6, "sequence_length": 32}, tokens=two_sources, mixture=mixture, curriculum={"start": 0.5}
    )  # fmt: skip
    pretrain(settings, StageRun(tmp_path / "whole"))
    said = capsys.readouterr().err
    assert "a: 75.00% of the run" in said
    assert "b: 25.00% of the run" in said
    shares = json.loads((tmp_path / "whole" / "mixture.json").read_text())
    assert shares["a"]["epochs"] == pytest.approx(0.75 * 24 / -(-(shares["a"]["tokens"] - 1) // 32))

    taken = MixedOrder.numbers
    rows: list[list[int]] = []

    def stopping(self: MixedOrder, places: range) -> list[int]:
        rows.append(taken(self, places))
        if places == range(12, 16):
            os.kill(os.getpid(), signal.SIGTERM)
        return rows[-1]

    monkeypatch.setattr(MixedOrder, "numbers", stopping)
    with pytest.raises(Interrupted, match="after step 4 of 6"):
        pretrain(settings, StageRun(tmp_path / "parts"))
    monkeypatch.setattr(MixedOrder, "numbers", taken)
    pretrain(settings, StageRun(tmp_path / "parts"))
    whole, parts = (load_model(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    other = settings.model_copy(
        update={"mixture": MixtureConfig.model_validate({**mixture, "weights": {"a": 1, "b": 1}})}
    )
    with pytest.raises(UsageError, match="other settings"):
        pretrain(other, StageRun(tmp_path / "parts"))


def test_what_a_mixture_repeats_is_limited_and_said(
    tmp_path: Path, config: Make, two_sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = {"domains": {"a": ["a.txt"], "b": ["b.txt"]}, "weights": {"a": 3, "b": 1}, "max_epochs": 1.5}
    settings = config({"steps": None}, tokens=two_sources, mixture=mixture)
    pretrain(settings, StageRun(tmp_path))
    said = capsys.readouterr().err
    assert "(not 75.00%, which would repeat it too often), 1.50 epochs, so what it has is repeated" in said
    with pytest.raises(UsageError, match=r"but in 0.5 epochs"):
        pretrain(config({"steps": None}, tokens=two_sources, mixture={"max_epochs": 0.5}), StageRun(tmp_path / "no"))
