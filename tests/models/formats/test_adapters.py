"""Adapter folders: what is written is read again; what is broken, hostile or not plain LoRA ends in one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.models.tiny import CONFIG
from torch import Tensor

from tallow.errors import DataError
from tallow.models.config import DecoderConfig
from tallow.models.formats.adapters import LowRank, read_adapter, write_adapter

SHAPES = {"attention.q_proj": (16, 16), "attention.v_proj": (8, 16), "feed_forward.down_proj": (16, 24)}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def make_adapter(rank: int = 3) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{layer}.{name}": LowRank(
            torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator), 0.5
        )
        for layer in range(2)
        for name, (outputs, inputs) in SHAPES.items()
    }


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(make_adapter(), CONFIG, tmp_path / "adapter", "base")
    return tmp_path / "adapter"


def refused(directory: Path, config: DecoderConfig = CONFIG) -> DataError:
    with pytest.raises(DataError) as raised:
        read_adapter(directory, config)
    assert "\n" not in raised.value.message
    assert not raised.value.message.endswith(".")
    assert raised.value.hint
    return raised.value


def set_config(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(directory: Path, **changes: Tensor | None) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "gpt2"])
def test_round_trip(family: str, tmp_path: Path) -> None:
    config = CONFIG
    if family in ("gpt_neox", "gpt2"):
        config = CONFIG.model_copy(update={"num_kv_heads": 2, "gated": False, "norm": "layer", "norm_bias": True})
    config = config.model_copy(update={"family": family})
    written = {name: update for name, update in make_adapter().items() if "v_proj" not in name}
    write_adapter(written, config, tmp_path / "adapter", "base")
    read = read_adapter(tmp_path / "adapter", config)
    for name, update in read.items():
        found = update.scale * update.b_OR @ update.a_RI
        if name in written:
            expected = written[name].scale * written[name].b_OR @ written[name].a_RI
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        else:  # stored as one matrix with another that has an update
            assert not found.any()
    assert written.keys() <= read.keys()


def test_a_bf16_adapter_without_the_model_prefix(directory: Path) -> None:
    """As of a base without its output matrix; numbers stay in the dtype in which they are stored."""
    path = directory / "adapter_model.safetensors"
    tensors = {name.replace("model.model.model", "model.model"): t.bfloat16() for name, t in load_file(path).items()}
    save_file({name.replace("base_model.model.model.", "base_model.model."): t for name, t in tensors.items()}, path)
    read = read_adapter(directory, CONFIG)
    assert read.keys() == make_adapter().keys()
    assert all(update.a_RI.dtype == torch.bfloat16 for update in read.values())


def test_patterns_name_the_ends_of_names(directory: Path) -> None:
    set_config(directory, lora_alpha=6, alpha_pattern={"v_proj": 30, "1.mlp.down_proj": 60, "^layers.0": 9, "proj": 1})
    scales = {name: update.scale for name, update in read_adapter(directory, CONFIG).items()}
    assert scales["layers.0.attention.v_proj"] == scales["layers.1.attention.v_proj"] == 10
    assert scales["layers.1.feed_forward.down_proj"] == 20
    assert scales["layers.0.feed_forward.down_proj"] == scales["layers.0.attention.q_proj"] == 2
    set_config(directory, alpha_pattern={}, use_rslora=True)
    assert read_adapter(directory, CONFIG)["layers.0.attention.q_proj"].scale == pytest.approx(6 / 3**0.5)


NOT_PLAIN = [
    ({"peft_type": "IA3"}, "'IA3'"),
    ({"peft_type": None}, "None"),
    ({"bias": "all"}, "biases"),
    ({"use_dora": True}, "use_dora"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "no module's name"),
]


@pytest.mark.parametrize(("changes", "message"), NOT_PLAIN)
def test_what_must_be_merged_first(directory: Path, changes: dict[str, Any], message: str) -> None:
    set_config(directory, **changes)
    error = refused(directory)
    assert message in error.message
    assert error.hint.startswith("merge it")


BROKEN_CONFIGS = [
    ({"r": 4}, "says rank 4"),
    ({"rank_pattern": {"v_proj": 7}}, "says rank 7"),
    ({"rank_pattern": [3]}, "rank_pattern"),
    *(({"r": value}, "no sound r") for value in (None, "3", True, [], -1, float("nan"), 10**400)),
    *(({"lora_alpha": value}, "no sound lora_alpha") for value in (None, "6", True, 0, float("inf"))),
    ({"alpha_pattern": {"v_proj": "many"}}, "no sound lora_alpha"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_CONFIGS)
def test_broken_settings(directory: Path, changes: dict[str, Any], message: str) -> None:
    set_config(directory, **changes)
    assert message in refused(directory).message


BROKEN_TENSORS = [
    ({f"{Q}.lora_A.weight": None}, "only one of the two"),
    ({f"{Q}.lora_B.weight": None}, "only one of the two"),
    ({f"{Q}.lora_A.weight": torch.zeros(3, 15)}, "does not fit"),
    ({f"{Q}.lora_B.weight": torch.zeros(17, 3)}, "does not fit"),
    ({f"{Q}.lora_B.weight": torch.zeros(16, 2)}, "shapes (3, 16) and (16, 2)"),
    ({f"{Q}.lora_A.weight": torch.zeros(3), f"{Q}.lora_B.weight": torch.zeros(3)}, "shapes (3,) and (3,)"),
    ({f"{Q}.lora_A.weight": torch.zeros(0, 16), f"{Q}.lora_B.weight": torch.zeros(16, 0)}, "shapes"),
    ({f"{Q}.lora_A.weight": torch.zeros(3, 16, dtype=torch.int8)}, "torch.int8"),
    ({f"{Q}.lora_A.weight": torch.full((3, 16), float("nan"))}, "not finite"),
    ({"base_model.model.lm_head.weight": torch.zeros(31, 16)}, "which the model lacks"),
    ({"base_model.model.model.norm.lora_A.weight": torch.zeros(3, 16)}, "only one of the two"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_TENSORS)
def test_broken_tensors(directory: Path, changes: dict[str, Tensor | None], message: str) -> None:
    set_tensors(directory, **changes)
    assert message in refused(directory).message


def test_adapters_of_other_models(directory: Path) -> None:
    assert "which the model lacks" in refused(directory, CONFIG.model_copy(update={"num_layers": 1})).message
    assert "does not fit" in refused(directory, CONFIG.model_copy(update={"intermediate_size": 48})).message


def test_files_that_are_missing(directory: Path) -> None:
    weights = directory / "adapter_model.safetensors"
    weights.rename(directory / "adapter_model.bin")
    assert "pickle" in refused(directory).message
    (directory / "adapter_model.bin").unlink()
    assert "does not exist" in refused(directory).message
    weights.mkdir()
    assert "is a directory" in refused(directory).message
    save_file({}, directory / "nothing")
    weights.rmdir()
    (directory / "nothing").rename(weights)
    assert "holds no matrices" in refused(directory).message
    (directory / "adapter_config.json").write_text("{" * 10_000)
    assert "not valid JSON" in refused(directory).message


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"<html>404</html>", struct.pack("<Q", 2**62)])
def test_weights_that_are_none(directory: Path, content: bytes) -> None:
    (directory / "adapter_model.safetensors").write_bytes(content)
    assert "broken" in refused(directory).message


@settings(max_examples=25)
@given(data=st.data())
def test_damaged_weights(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file cut short or changed anywhere is refused, or still a whole adapter."""
    directory = tmp_path_factory.mktemp("damaged") / "adapter"
    write_adapter(make_adapter(), CONFIG, directory, "base")
    path = directory / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        names = read_adapter(directory, CONFIG).keys()
    except DataError:
        return
    assert names == make_adapter().keys()
