"""The front door of the formats, and conversion between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.files import read_json
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import Precision, load_model, load_tokenizer, save_gguf, save_model
from tallow.models.formats.convert import convert
from tallow.models.quantization import dequantized_state, quantize_modules
from tallow.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def model() -> Decoder:
    config = DecoderConfig(
        vocab_size=320,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=96,
        bos_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    model = Decoder(config).eval()
    initialize(model, seed=0)
    return model


@pytest.fixture
def directory(tmp_path: Path, model: Decoder, make_tokenizer: Callable[..., Tokenizer]) -> Path:
    save_model(model, make_tokenizer(), tmp_path / "hub")
    return tmp_path / "hub"


def logits(model: Decoder) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.arange(40)[None] * 7, SequenceContext.plain(1, 40)))


def test_both_formats_by_one_name(tmp_path: Path, model: Decoder, directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    save_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    for path in (directory, tmp_path / "model.gguf"):
        assert torch.equal(logits(load_model(path)), logits(model))
        assert next(load_model(path, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16
        assert load_tokenizer(path).encode("the cat 1984") == tokenizer.encode("the cat 1984")


def test_nothing_there(tmp_path: Path) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(DataError, match="does not exist"):
            load(tmp_path / "none")
        with pytest.raises(DataError):
            load(tmp_path)
    (tmp_path / "text").write_text("no model at all, but long enough for a header")
    with pytest.raises(DataError, match="no GGUF file"):
        load_model(tmp_path / "text")


def test_integer_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        load_model(directory, dtype=torch.int8)


@pytest.mark.parametrize(("precision", "written"), [("auto", "f32"), ("f32", "f32"), ("f16", "f16"), ("bf16", "bf16")])
def test_there_and_back(tmp_path: Path, model: Decoder, directory: Path, precision: Precision, written: str) -> None:
    there = convert(directory, "gguf", tmp_path / "model.gguf", precision)
    size = (tmp_path / "model.gguf").stat().st_size
    assert there == {
        "path": str(tmp_path / "model.gguf"),
        "format": "gguf",
        "precision": written,
        "parameters": model.num_parameters(),
        "bytes": size,
    }
    back = convert(tmp_path / "model.gguf", "safetensors", tmp_path / "back")
    assert (back["format"], back["precision"]) == ("safetensors", written)
    tolerance = {"f32": 0.0, "f16": 2e-3, "bf16": 2e-2}[written]
    torch.testing.assert_close(
        logits(load_model(tmp_path / "back", dtype=torch.float32)), logits(model), rtol=0, atol=tolerance
    )
    assert load_model(tmp_path / "back").config == load_model(directory).config
    assert load_tokenizer(tmp_path / "back").encode("don't 12") == load_tokenizer(directory).encode("don't 12")


def test_compressed_models_keep_their_bits(tmp_path: Path, model: Decoder) -> None:
    quantize_modules(model, 4, 32)
    save_model(model, None, tmp_path / "hub")
    result = convert(tmp_path / "hub", "gguf", tmp_path / "model.gguf")
    assert result["precision"] == "q4_0"
    torch.testing.assert_close(logits(load_model(tmp_path / "model.gguf")), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_compressed_models_are_unpacked_for_others(
    tmp_path: Path, model: Decoder, precision: Precision, dtype: torch.dtype
) -> None:
    """A directory of the precision asked for, which other programs read."""
    quantize_modules(model, 4, 32)
    save_model(model, None, tmp_path / "hub")
    expected = {name: tensor.to(dtype) for name, tensor in dequantized_state(model).items()}
    convert(tmp_path / "hub", "safetensors", tmp_path / "plain", precision)
    assert "quantization_config" not in read_json(tmp_path / "plain" / "config.json")
    torch.testing.assert_close(dict(load_model(tmp_path / "plain").state_dict()), expected, rtol=0, atol=0)


def test_what_cannot_be(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(UsageError, match="cannot hold q4_0"):
        convert(directory, "safetensors", tmp_path / "out", "q4_0")
    with pytest.raises(UsageError, match="is a directory"):
        convert(directory, "gguf", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        convert(directory, "safetensors", tmp_path / "file")
    with pytest.raises(DataError, match="no model"):
        convert("nothing-of-that-name", "gguf", tmp_path / "out.gguf")


def test_model_without_tokenizer(tmp_path: Path, model: Decoder, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(model, None, tmp_path / "hub")
    convert(tmp_path / "hub", "gguf", tmp_path / "model.gguf", "f16")
    assert "no tokenizer" in capsys.readouterr().err
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", "safetensors", tmp_path / "back")


def test_nothing_but_a_model_is_replaced(directory: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    convert(directory, "safetensors", precious)
    convert(directory, "safetensors", precious)  # a model is there now, which may be replaced
    (precious / "docs").mkdir()
    (precious / "docs" / "a.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds docs"):
        convert(directory, "safetensors", precious)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds files and no config"):
        convert(directory, "safetensors", notes)
    with pytest.raises(UsageError, match=r"no \.gguf file"):
        convert(directory, "gguf", notes / "notes.txt")
    assert (precious / "docs" / "a.txt").read_text() == (notes / "notes.txt").read_text() == "years of work"


def test_the_present_directory_can_be_the_target(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = convert(directory, "safetensors", Path("."))
    assert load_model(Path(result["path"])).config.vocab_size == 320
