from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from tallow.compress.quantize import CompressConfig, compress
from tallow.compress.rtn import relative_error
from tallow.errors import DataError, UsageError
from tallow.files import directory_size
from tallow.kernels.quantized import dequantize, quantize_groups
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.models.quantization import model_bytes, quantize_modules, quantized_modules
from tallow.recipe import parse_section
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer

CONFIG = DecoderConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A saved model, float32."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    model = Decoder(CONFIG)
    initialize(model, seed=0)
    save_model(model, Tokenizer.from_backend(backend), tmp_path / "plain")
    return tmp_path / "plain"


def start(tmp_path: Path) -> StageRun:
    run = StageRun(tmp_path / "run")
    run.directory.mkdir(exist_ok=True)
    return run


def test_writes_a_smaller_model_that_says_what_it_lost(directory: Path, tmp_path: Path) -> None:
    run = start(tmp_path)
    result = compress(CompressConfig(model=directory, bits=4, group_size=32, embedding_bits=8), run)
    original, small = load_model(directory), load_model(run.directory / "model")
    expected = quantize_modules(original, 4, 32, embedding_bits=8)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor), name
    assert result["original_bytes"] == 4 * Decoder(CONFIG).num_parameters()
    assert result["model_bytes"] == model_bytes(small) < 0.2 * result["original_bytes"]
    assert directory_size(run.directory / "model") < 0.35 * directory_size(directory)
    assert 4.5 < result["bits_per_weight"] < 8.5
    assert load_tokenizer(run.directory / "model").encode("wax") == load_tokenizer(directory).encode("wax")

    records = run.metrics()
    assert [record["module"] for record in records][:2] == ["embed", "layers.0.attention.q_proj"]
    assert len(records) == 1 + 2 * 7
    errors = {record["module"]: record["relative_error"] for record in records}
    assert 0 < errors["embed"] < 0.01 < min(error for name, error in errors.items() if name != "embed")
    assert result["max_relative_error"] == max(errors.values()) == errors[result["worst_module"]] < 0.15


@pytest.mark.parametrize(("settings", "embedding_bits"), [({}, 6), ({"bits": 8}, 8), ({"embedding_bits": 4}, 4)])
def test_embedding_bits_follow_the_linear_layers(
    directory: Path, tmp_path: Path, settings: dict[str, int], embedding_bits: int
) -> None:
    run = start(tmp_path)
    compress(parse_section(CompressConfig, {"model": str(directory), **settings}, "compress"), run)
    bits = {record["module"]: record["bits"] for record in run.metrics()}
    assert bits.pop("embed") == embedding_bits
    assert set(bits.values()) == {settings.get("bits", 4)}
    stored = quantized_modules(load_model(run.directory / "model"))
    assert stored["embed"].weight.bits == embedding_bits


def test_relative_error_is_that_of_the_whole_weight() -> None:
    weight = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize_groups(weight, 4, 32)
    expected = (weight - dequantize(quantized)).norm() / weight.norm()
    assert relative_error(weight, quantized) == pytest.approx(float(expected), rel=1e-5)
    assert relative_error(torch.zeros(2, 32), quantize_groups(torch.zeros(2, 32), 4, 32)) == 0


def test_a_quantized_model_is_refused(directory: Path, tmp_path: Path) -> None:
    run = start(tmp_path)
    compress(CompressConfig(model=directory), run)
    with pytest.raises(UsageError, match="already"):
        compress(CompressConfig(model=run.directory / "model"), StageRun(tmp_path / "again"))
    assert not (tmp_path / "again" / "model").exists()


def test_a_damaged_model_leaves_nothing_behind(directory: Path, tmp_path: Path) -> None:
    model = load_model(directory)
    with torch.no_grad():
        model.layers[0].get_submodule("attention.q_proj").get_parameter("weight")[3, 3] = float("nan")
    save_model(model, load_tokenizer(directory), tmp_path / "damaged")
    run = start(tmp_path)
    with pytest.raises(DataError, match="not finite"):
        compress(CompressConfig(model=tmp_path / "damaged"), run)
    assert not (run.directory / "model").exists()


def test_skipping_everything_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight"):
        compress(CompressConfig(model=directory, embedding_bits=None, skip=("layers",)), start(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 5},
        {"group_size": 48},
        {"embedding_bits": 16},
        {"embedding_bits": "all"},
        {"method": "magic"},
        {"modle": "x"},
        {},
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(values), "model")):
        parse_section(CompressConfig, {"model": "m", **values} if values else {}, "compress")
