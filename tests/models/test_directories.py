from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tallow.errors import CapacityError, UsageError
from tallow.files import directory_size, hash_file
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig, Rotary, RotaryScaling
from tallow.models.decoder import Decoder, initialize
from tallow.models.families import FAMILIES, find_family
from tallow.models.formats import tensor_files
from tallow.models.formats.hub import load_directory, read_config, save_directory

SIZES = {
    "vocab_size": 31,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "intermediate_size": 48,
    "max_positions": 32,
}
BIASES = {"qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True}
GEMMA = {"norm_offset": True, "norm_placement": "both", "embedding_scale": True, "activation": "gelu_tanh"}
PLAIN = {"norm": "layer", "norm_bias": True, "gated": False, **BIASES}
FAMILY_CHOICES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "mistral": {"window": 5},
    "qwen2": {"qkv_bias": True, "window": 5, "sliding_layers": (False, True)},
    "qwen3": {"qk_norm": "head", "head_dim": 16},
    "gemma2": {**GEMMA, "window": 5, "sliding_layers": (True, False), "attention_softcap": 50.0},
    "gemma3_text": {
        **GEMMA,
        "qk_norm": "head",
        "window": 5,
        "sliding_layers": (True, False),
        "local_rotary": Rotary(theta=100.0),
    },
    "phi3": {"rotary": Rotary(fraction=0.5)},
    "olmo2": {"norm_placement": "post", "qk_norm": "hidden"},
    "gpt2": {**PLAIN, "positions": "learned", "activation": "gelu_tanh"},
    "gpt_neox": {**PLAIN, "parallel_residual": True, "activation": "gelu", "rotary": Rotary(fraction=0.25)},
    "mixtral": {"num_kv_heads": 2, "num_experts": 3, "router_balance": "none"},
    "minimax_m2": {
        **{"qk_norm": "hidden", "num_experts": 3, "router_scores": "sigmoid", "router_balance": "bias"},
        **{"rotary": Rotary(fraction=0.5), "router_balance_weight": 0.02},
    },
    "olmoe": {"qk_norm": "hidden", "num_experts": 4, "experts_per_token": 3, "normalize_expert_weights": False},
    "starcoder2": {**PLAIN, "window": 5, "activation": "gelu_tanh"},
}
IDS_BT = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(0))


def make_model(family: str, **changes: Any) -> Decoder:
    config = DecoderConfig.model_validate({**SIZES, "family": family, **FAMILY_CHOICES[family], **changes})
    model = Decoder(config)
    initialize(model, seed=0)
    return model.eval()


def logits(model: Decoder) -> Tensor:
    return model.logits(model(IDS_BT, SequenceContext.plain(2, 16)))


def test_every_family_is_here() -> None:
    assert set(FAMILY_CHOICES) == {family.name for family in FAMILIES.values()}


@pytest.mark.parametrize("family", FAMILY_CHOICES)
def test_round_trip(family: str, tmp_path: Path) -> None:
    model = make_model(family, eos_ids=(2, 3), bos_id=1)
    save_directory(model, None, tmp_path / "model")
    again = load_directory(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    save_directory(again, None, tmp_path / "again")
    assert hash_file(tmp_path / "again" / "model.safetensors") == hash_file(tmp_path / "model" / "model.safetensors")
    assert hash_file(tmp_path / "again" / "config.json") == hash_file(tmp_path / "model" / "config.json")


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_training_a_loaded_model_leaves_its_file_alone(family: str, tmp_path: Path) -> None:
    save_directory(make_model(family), None, tmp_path)
    before = hash_file(tmp_path / "model.safetensors")
    mapped, copied = load_directory(tmp_path), make_model(family)
    for model in (mapped, copied):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        logits(model).square().mean().backward()
        optimizer.step()
    for ours, plain in zip(mapped.parameters(), copied.parameters(), strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)
    assert not torch.equal(logits(mapped), logits(load_directory(tmp_path)))
    assert hash_file(tmp_path / "model.safetensors") == before


LOAD = """
import gc, sys
from pathlib import Path
import torch
from tallow.models.formats.hub import load_directory

def resident(field):  # not ru_maxrss, which a process inherits from the one that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

for path, dtype in ((sys.argv[1], None), (sys.argv[2], None), (sys.argv[1], torch.bfloat16)):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    model = load_directory(Path(path), dtype)
    loaded = resident("VmRSS")
    total = sum(float(parameter.detach().sum()) for parameter in model.parameters())  # every page is read
    print(loaded - before, resident("VmHWM") - before, total)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc here")
def test_loading_maps_and_does_not_copy(tmp_path: Path) -> None:
    """Models of 200 MB. What needs a copy (GPT-NeoX interleaves queries, keys and values, a quarter of it; another
    dtype) takes the memory of the copy alone."""
    sizes = {"hidden_size": 1024, "num_layers": 4, "intermediate_size": 4096, "vocab_size": 64}
    paths = [tmp_path / family for family in ("llama", "gpt_neox")]
    for path in paths:
        save_directory(make_model(path.name, **sizes), None, path)
    llama, gpt_neox = (directory_size(path) for path in paths)
    assert gpt_neox > 190e6
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120
    )
    weight = 4 * 1024 * 4096  # the file's pages of the one that is being copied
    cases = [(llama, 0.0, 0), (gpt_neox, 0.25 * gpt_neox, weight), (llama / 2, llama / 2, weight)]
    for (size, copied, passing), line in zip(cases, result.stdout.splitlines(), strict=True):
        loaded, peak, _ = (float(number) for number in line.split())
        assert loaded < copied + 0.1 * size
        assert 0.9 * size < peak < 1.1 * size + passing


def test_dtypes(tmp_path: Path) -> None:
    save_directory(make_model("llama").bfloat16(), None, tmp_path)
    assert {parameter.dtype for parameter in load_directory(tmp_path).parameters()} == {torch.bfloat16}
    asked = load_directory(tmp_path, torch.float32)
    assert {parameter.dtype for parameter in asked.parameters()} == {torch.float32}
    # norms in fp32 in a bf16 model, as some tools write it
    tensors = load_file(tmp_path / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor.clone() for name, tensor in tensors.items()}
    save_file(mixed, tmp_path / "model.safetensors")
    assert {parameter.dtype for parameter in load_directory(tmp_path).parameters()} == {torch.bfloat16}


def test_a_saved_file_is_as_readable_as_any(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    save_directory(make_model("llama"), None, tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"qk_norm": "head"}, "qk_norm"),
        ("llama", {"window": 5}, "window"),
        ("llama", {"qkv_bias": True}, "attention_output_bias"),
        ("llama", {"rotary": Rotary(fraction=0.5)}, "rotary"),
        ("mistral", {"sliding_layers": (True, False)}, "window"),
        ("gemma3_text", {"attention_softcap": 50.0}, "attention_softcap"),
        ("gemma2", {"attention_scale": 0.3}, "attention_scale"),
        ("gpt2", {"num_kv_heads": 2}, "num_kv_heads"),
        ("gpt_neox", {"head_dim": 16}, "head_dim"),
        ("phi3", {"rotary": Rotary(scaling=RotaryScaling(kind="linear", factor=2.0))}, "linear"),
        ("llama", {"num_experts": 4}, "num_experts"),
        ("mixtral", {"num_experts": 0}, "no experts"),
        ("mixtral", {"normalize_expert_weights": False}, "normalize_expert_weights"),
        ("mixtral", {"router_balance": "bias"}, "router_balance"),
    ],
)
def test_what_a_family_cannot_say_is_refused(family: str, changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(named)) as raised:
        save_directory(make_model(family, **changes), None, tmp_path / "model")
    assert family in raised.value.message
    assert not (tmp_path / "model").exists()


def test_equal_spellings_of_an_architecture_are_not_refused() -> None:
    config = DecoderConfig.model_validate(
        {**SIZES, "family": "mistral", "window": 5, "sliding_layers": (True, True), "head_dim": 8}
    )
    assert find_family("mistral").hub_config(config)["sliding_window"] == 5


def test_generation_config_wins(tmp_path: Path) -> None:
    save_directory(make_model("llama", eos_ids=(2,), pad_id=0), None, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "pad_token_id": None}))
    config = read_config(tmp_path)
    assert (config.eos_ids, config.pad_id) == ((5, 6), 0)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_to_full(*_args: Any, **_options: Any) -> None:
        with open("/dev/full", "wb") as file:
            try:
                file.write(b"x" * 10**6)
            except OSError as error:
                text = f"I/O error: {error.strerror} (os error {error.errno})"
                raise SafetensorError(text) from error

    monkeypatch.setattr(tensor_files, "save_file", save_to_full)
    with pytest.raises(CapacityError, match="no space left"):
        save_directory(make_model("llama"), None, tmp_path / "model")
    assert os.listdir(tmp_path) == []
