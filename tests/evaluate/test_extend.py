"""A model whose vocabulary grows computes what it did, and reads its text in fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tallow.engine.language_model import load
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, UsageError
from tallow.evaluate.extend import extend
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.models.growth.vocabulary import NewRows, extend_vocabulary
from tallow.models.quantization import quantize_modules

from .test_perplexity import make_model, make_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 264,  # the tokenizer has 257, so some rows are padding
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 64,
    "max_positions": 128,
}
TEXT = "".join(f"Tallow candles, number {n}: candlelight for the evening.\n" for n in range(800))


def config(tied: bool) -> DecoderConfig:
    return DecoderConfig(**SHAPE, tied_embeddings=tied)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model(make_model(config(request.param)), make_tokenizer(), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor([ids]), SequenceContext.plain(1, len(ids))))[0]


def test_the_written_model_loads_here_and_in_transformers(base: Path, text: Path, tmp_path: Path) -> None:
    result = extend(base, [text], 30, tmp_path / "out")
    assert result["new_tokens"] == 30
    assert result["vocab_size"] == 257 + 30
    assert result["after"]["bytes_per_token"] > 1.5 * result["before"]["bytes_per_token"]
    assert 7 < result["before"]["bits_per_byte"] < 9, "a random model of bytes"
    assert result["after"]["bits_per_byte"] < result["before"]["bits_per_byte"]
    written = json.loads((tmp_path / "out" / "extension.json").read_text())
    assert written["after"] == result["after"]

    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode(TEXT[:60])
    assert max(ids) >= 257
    assert their_tokenizer.encode(TEXT[:60], add_special_tokens=False) == ids
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0], logits(model, ids), atol=1e-4, rtol=0)
    answer = load(tmp_path / "out", "fp32").generate(TEXT[:60], SamplingParams(max_new_tokens=4))
    assert len(answer.ids) == 4


def test_old_tokens_are_read_and_predicted_as_before(base: Path, text: Path, tmp_path: Path) -> None:
    extend(base, [text], 30, tmp_path / "out")
    before, after = load_model(base), load_model(tmp_path / "out")
    ids = load_tokenizer(base).encode(TEXT[:60])
    torch.testing.assert_close(logits(after, ids)[:, :257], logits(before, ids)[:, :257], atol=1e-6, rtol=0)


PIECES = {257: [5, 6], 258: [5, 6, 7], 270: [9, 9]}


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_is_the_mean_of_its_pieces(tied: bool) -> None:
    model = make_model(config(tied))
    larger = extend_vocabulary(model, PIECES)
    assert larger.config.vocab_size == 271
    assert (larger.lm_head is None) == tied
    rows = logits(larger, [1, 2, 3])
    for id, pieces in PIECES.items():
        torch.testing.assert_close(larger.embed.weight[id], model.embed.weight[pieces].mean(0))
        torch.testing.assert_close(rows[:, id], rows[:, pieces].mean(1))


def test_a_new_token_is_read_as_its_last_piece_and_predicted_as_its_first() -> None:
    model = make_model(config(tied=False))
    larger = extend_vocabulary(model, PIECES, "edges")
    rows = logits(larger, [1, 2, 258])
    torch.testing.assert_close(rows[:, :257], logits(model, [1, 2, 7])[:, :257])
    torch.testing.assert_close(rows[:, 258], rows[:, 5])
    with pytest.raises(UsageError, match="are one"):
        extend_vocabulary(make_model(config(tied=True)), PIECES, "edges")


@pytest.mark.parametrize("new_rows", ["average", "random"])
def test_a_new_token_is_like_all_others(new_rows: NewRows) -> None:
    model = make_model(config(tied=True))
    many = {257 + index: [5, 6] for index in range(2000)}
    rows = extend_vocabulary(model, many, new_rows, seed=1).embed.weight[257:].detach()
    known = model.embed.weight[:257].detach()
    torch.testing.assert_close(rows.mean(0), known.mean(0), atol=4 * float(known.std()) / 2000**0.5, rtol=0)
    assert bool((rows.std(0) > 0.9 * known.std(0)).all()) == (new_rows == "random")
    again = extend_vocabulary(model, many, new_rows, seed=1).embed.weight[257:].detach()
    torch.testing.assert_close(again, rows, atol=0, rtol=0)


def test_a_text_to_measure_on_can_be_named(base: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Another text, which is about candlelight.\n")
    result = extend(base, [text], 5, tmp_path / "out", held_out=tmp_path / "other.txt")
    assert result["before"]["tokens"] == 41


def test_what_cannot_be_extended_is_refused(base: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the model that is to be extended"):
        extend(base, [text], 5, base)
    save_model(quantize_modules(load_model(base), 8, 32), load_tokenizer(base), tmp_path / "q8")
    with pytest.raises(UsageError, match="quantized"):
        extend(tmp_path / "q8", [text], 5, tmp_path / "out")
    (tmp_path / "bare.txt").write_text("a")
    with pytest.raises(DataError):
        extend(base, [tmp_path / "bare.txt"], 5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
