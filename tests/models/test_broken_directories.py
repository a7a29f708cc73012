"""Directories that are broken, hostile or not for us end in one sentence, quickly and without memory."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models.tiny import CONFIG

from tallow.errors import DataError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import tensor_files
from tallow.models.formats.hub import load_directory, save_directory

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUGE = 10**12


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole model directory."""
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in shards."""
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 4000)
    write_model(tmp_path / "model")
    return tmp_path / "model"


def write_model(path: Path) -> None:
    model = Decoder(CONFIG)
    initialize(model, seed=0)
    save_directory(model, None, path)


def refused(directory: Path) -> DataError:
    with pytest.raises(DataError) as raised:
        load_directory(directory)
    message = raised.value.message
    assert "\n" not in message
    assert not message.endswith(".")
    assert raised.value.hint
    return raised.value


def set_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / WEIGHTS).items()} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, directory / WEIGHTS)


def test_the_fixture_is_whole(directory: Path) -> None:
    assert load_directory(directory).config == CONFIG


def test_no_directory(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere").message


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("text")
    assert "config.json" in refused(tmp_path / "model").message


def test_empty_directory(tmp_path: Path) -> None:
    assert "config.json" in refused(tmp_path).message


# ---- config.json


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\x00\x01", "{" * 10_000, '{"a": 1e999}'])
def test_config_that_is_none(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text)
    assert "config.json" in refused(directory).message


@pytest.mark.parametrize("model_type", ["t5", "", 7, None, ["llama"], {"llama": 1}])
def test_unknown_model_type(directory: Path, model_type: Any) -> None:
    set_config(directory, model_type=model_type)
    error = refused(directory)
    assert "not supported" in error.message
    assert "llama" in error.hint


def test_an_end_token_outside_the_vocabulary_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(directory, eos_token_id=[30, 99999])
    load_directory(directory)
    [line] = capsys.readouterr().err.splitlines()
    assert "eos_token_id 99999 is not in the vocabulary of 31" in line


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_missing_field(directory: Path, key: str) -> None:
    values = json.loads((directory / "config.json").read_text())
    del values[key]
    (directory / "config.json").write_text(json.dumps(values))
    assert key in refused(directory).message


SIZES = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
SIZES += ["intermediate_size", "max_position_embeddings"]
NONSENSE = [-1, 0, HUGE, 10**40, 1.5, "many", [], {}, float("nan"), True]
# no kv heads given: as many as heads; true is 1, which here is right for these two
MEANT_WELL = [("num_key_value_heads", value) for value in (0, [], {}, True)] + [("max_position_embeddings", True)]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in SIZES for value in NONSENSE if (key, value) not in MEANT_WELL]
)
def test_nonsense_sizes(directory: Path, key: str, value: Any) -> None:
    set_config(directory, **{key: value})
    refused(directory)


NONSENSE_CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "quick_gelu"}, "the activation 'quick_gelu'"),
    ({"hidden_act": ["silu"]}, "unhashable type"),
    ({"rms_norm_eps": -1.0}, "norm_eps"),
    ({"rms_norm_eps": "small"}, "norm_eps"),
    ({"tie_word_embeddings": "perhaps"}, "tied_embeddings"),
    ({"eos_token_id": "</s>"}, "eos_ids"),
    ({"eos_token_id": [[1]]}, "eos_ids"),
    ({"rope_theta": 0, "rope_parameters": None}, "theta"),
    ({"rope_theta": "a"}, "theta"),
    ({"rope_parameters": "linear"}, "attribute 'get'"),
    ({"rope_parameters": [1]}, "attribute 'get'"),
    ({"rope_parameters": {"rope_type": "linear"}}, "linear needs a factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, "factor: "),
    ({"rope_parameters": {"rope_type": "spiral", "factor": 2}}, "rotary scaling 'spiral'"),
    ({"rope_parameters": {"rope_type": ["linear"]}}, "unhashable type"),
    (
        {"rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
        "high_freq_factor",
    ),
    (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "longrope needs 4 short",
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": HUGE}},
        "original_max_positions",
    ),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by 'gptq'"),
    ({"quantization_config": ["tallow"]}, "quantized by None"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "negative power"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": -4}, "attention_scale"),
    ({"model_type": "gemma2", "layer_types": ["sliding_attention"]}, "names 1 layers of 2"),
    ({"model_type": "gemma2", "layer_types": ["linear_attention", "full_attention"]}, "type 'linear_attention'"),
    ({"model_type": "gemma2", "layer_types": 3}, "not iterable"),
    ({"model_type": "gemma2", "sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "needs a window"),
    ({"model_type": "gemma2", "num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers is 1000000000"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "bidirectional attention"),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 0, "layer_types": None}, "modulo by zero"),
    ({"model_type": "gemma3", "text_config": "none"}, "not a mapping"),
    ({"model_type": "gemma3", "text_config": {}}, "26 layers"),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": "all"},
        "not supported between",
    ),
    ({"model_type": "phi3", "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "no rotary scaling 'linear'"),
    ({"model_type": "gpt_neox", "rope_parameters": None, "rotary_pct": 7}, "fraction"),
    ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, "no n_positions"),
    (
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "add_cross_attention": True},
        "add_cross_attention",
    ),
]


@pytest.mark.parametrize(
    ("changes", "complaint"), NONSENSE_CHOICES, ids=[repr(changes) for changes, _ in NONSENSE_CHOICES]
)
def test_nonsense_choices(directory: Path, changes: dict[str, Any], complaint: str) -> None:
    """Refused for what is wrong with them, not because the weights are those of another model."""
    set_config(directory, **changes)
    assert complaint in refused(directory).message


def test_sizes_that_only_multiplied_are_too_large(directory: Path) -> None:
    set_config(directory, hidden_size=2**31 - 2, intermediate_size=2**31 - 2, head_dim=2**30)
    refused(directory)


def test_more_layers_than_tensors(directory: Path) -> None:
    set_config(directory, num_hidden_layers=9_999)
    assert "layers" in refused(directory).message


def test_fewer_layers_than_are_stored(directory: Path) -> None:
    set_config(directory, num_hidden_layers=1)
    assert "model.layers.1." in refused(directory).message


@pytest.mark.parametrize("text", ["", "[]", '{"eos_token_id": {}}'])
def test_broken_generation_config(directory: Path, text: str) -> None:
    (directory / "generation_config.json").write_text(text)
    refused(directory)


# ---- weights


def test_no_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    assert WEIGHTS in refused(directory).message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickles_are_never_opened(directory: Path, name: str) -> None:
    (directory / WEIGHTS).unlink()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (directory / "sprung",)

    (directory / name).write_bytes(pickle.dumps(Trap()))
    error = refused(directory)
    assert name in error.message
    assert "safetensors" in error.hint
    assert not (directory / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"{}", b"<html>404</html>", struct.pack("<Q", 2)])
def test_weights_that_are_none(directory: Path, content: bytes) -> None:
    (directory / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused(directory).message


def test_weights_that_are_a_directory(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()
    assert WEIGHTS in refused(directory).message


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a whole model directory."""
    directory = tmp_path_factory.mktemp("whole") / "model"
    write_model(directory)
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_weights(content: dict[str, bytes], share: float) -> None:
    with TemporaryDirectory() as place:
        for name, whole in content.items():
            (Path(place) / name).write_bytes(whole[: int(share * len(whole))] if name == WEIGHTS else whole)
        assert WEIGHTS in refused(Path(place)).message


@given(position=st.integers(0, 10**4), value=st.integers(0, 255))
def test_a_changed_byte_never_crashes(content: dict[str, bytes], position: int, value: int) -> None:
    """Within the header; the data have no check."""
    weights = bytearray(content[WEIGHTS])
    (header_size,) = struct.unpack("<Q", weights[:8])
    weights[position % (8 + header_size)] = value
    with TemporaryDirectory() as place:
        for name, whole in {**content, WEIGHTS: bytes(weights)}.items():
            (Path(place) / name).write_bytes(whole)
        try:
            load_directory(Path(place))  # a changed space may as well leave it whole
        except DataError as error:
            assert "\n" not in error.message  # noqa: PT017


def test_missing_tensor(directory: Path) -> None:
    set_tensors(directory, **{"model.norm.weight": None})
    assert "model.norm.weight" in refused(directory).message


@pytest.mark.parametrize("shape", [(), (15, 16), (16, 15), (16, 16, 1), (256,), (0, 16)])
def test_wrong_shape(directory: Path, shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    set_tensors(directory, **{name: torch.zeros(shape)})
    assert name in refused(directory).message


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("shape", [(), (3,), (48, 15), (47, 16), (16, 16, 3), (0, 16)])
def test_wrong_shape_of_a_fused_tensor(tmp_path: Path, family: str, shape: tuple[int, ...]) -> None:
    plain = {"norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu"}
    plain |= {"qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True}
    choices: dict[str, dict[str, Any]] = {
        "phi3": {},
        "gpt2": {**plain, "positions": "learned"},
        "gpt_neox": {**plain, "parallel_residual": True},
    }
    values = {**CONFIG.model_dump(), "num_kv_heads": 2, "head_dim": 8, "family": family, **choices[family]}
    save_directory(Decoder(DecoderConfig.model_validate(values)), None, tmp_path / "model")
    fused = {"phi3": "self_attn.qkv_proj", "gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value"}[family]
    name = next(name for name in load_file(tmp_path / "model" / WEIGHTS) if name.endswith(f"{fused}.weight"))
    set_tensors(tmp_path / "model", **{name: torch.zeros(shape)})
    assert name in refused(tmp_path / "model").message


def test_vocabulary_that_does_not_fit(directory: Path) -> None:
    set_config(directory, vocab_size=32)
    message = refused(directory).message
    assert "(31, 16)" in message
    assert "(32, 16)" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_kind(directory: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    set_tensors(directory, **{name: torch.zeros(24, 16).to(dtype)})
    message = refused(directory).message
    assert name in message
    assert str(dtype) in message


def test_a_weight_that_the_config_does_not_explain(directory: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    set_tensors(directory, **{name: torch.zeros(16)})
    assert name in refused(directory).message


# ---- shards


def set_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_the_sharded_fixture_is_whole(sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert load_directory(sharded).config == CONFIG


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(sharded).message


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in refused(sharded).message


@pytest.mark.parametrize(
    "file",
    [
        "../other.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b.safetensors",
        "pytorch_model.bin",
        "\0.safetensors",
        3,
        None,
        [],
    ],
)
def test_index_that_points_elsewhere(sharded: Path, file: Any) -> None:
    (sharded.parent / "other.safetensors").write_bytes(next(sharded.glob("*.safetensors")).read_bytes())
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    set_index(sharded, {**weight_map, "model.norm.weight": file})
    assert INDEX in refused(sharded).message


@pytest.mark.parametrize("weight_map", [None, [], "text", {}])
def test_index_that_is_none(sharded: Path, weight_map: Any) -> None:
    set_index(sharded, weight_map)
    refused(sharded)


def test_index_that_promises_what_a_shard_lacks(sharded: Path) -> None:
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(file for file in weight_map.values() if file != weight_map["model.norm.weight"])
    set_index(sharded, {**weight_map, "model.norm.weight": other})
    message = refused(sharded).message
    assert other in message
    assert "model.norm.weight" in message


# ---- experts


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A whole model directory with three experts in each layer."""
    model = Decoder(CONFIG.model_copy(update={"family": "mixtral", "num_experts": 3}))
    initialize(model, seed=0)
    save_directory(model, None, tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.mark.parametrize("experts", [HUGE, 10_000, 100, 4, 2, 1, 0, -1, None, "x", 2.5])
def test_other_numbers_of_experts(mixture: Path, experts: Any) -> None:
    assert load_directory(mixture).config.num_experts == 3
    set_config(mixture, num_local_experts=experts)
    refused(mixture)


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


def test_a_missing_expert(mixture: Path) -> None:
    set_tensors(mixture, **{EXPERT: None})
    assert f"has no tensor {EXPERT}" in refused(mixture).message


def test_an_expert_of_another_shape(mixture: Path) -> None:
    set_tensors(mixture, **{EXPERT: torch.zeros(24, 17)})
    message = refused(mixture).message
    assert EXPERT in message
    assert "(24, 16)" in message
