"""What real hub directories look like: older spellings, other tensor names, shards, dtypes, control tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
)

from tallow.files import read_json, write_json
from tallow.models.decoder import Decoder
from tallow.models.formats import tensor_files
from tallow.models.formats.hub import load_directory, save_directory

TOLERANCE = 5e-5
Logits = Callable[[PreTrainedModel, Tensor], Tensor]
OurLogits = Callable[[Decoder, Tensor], Tensor]
MakeReference = Callable[..., PreTrainedModel]
SameLogits = Callable[[Decoder, PreTrainedModel], None]

YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT_AND_LONG = {"short_factor": [1.0, 1.5], "long_factor": [1.0, 8.0]}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
PARTLY = {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}
PYTHIA = {"rotary_pct": 0.5, "rotary_emb_base": 500}


def new_rope(theta: float, scaling: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {**scaling, "rope_theta": theta}}


def old_rope(theta: float, scaling: dict[str, Any]) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_scaling": scaling}


# (model_type, options of the reference, fields of config.json to take away, fields to put instead)
OLD_SPELLINGS: dict[str, tuple[str, dict[str, Any], list[str], dict[str, Any]]] = {
    "llama": ("llama", new_rope(500.0, {"rope_type": "default"}), [], {"rope_theta": 500.0}),
    "llama-linear": (
        "llama",
        new_rope(500.0, {"rope_type": "linear", "factor": 4.0}),
        ["head_dim"],
        old_rope(500.0, {"type": "linear", "factor": 4.0}),
    ),
    "llama-3.1": ("llama", new_rope(500.0, LLAMA3), [], old_rope(500.0, LLAMA3)),
    "qwen2-yarn": (
        "qwen2",
        {**WINDOWS, **new_rope(500.0, {"rope_type": "yarn", **YARN})},
        ["layer_types"],
        old_rope(500.0, {"type": "yarn", **YARN}),
    ),
    "gemma2": (
        "gemma2",
        {"head_dim": 8, "sliding_window": 5},
        ["layer_types"],
        {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        ["layer_types"],
        {
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 100.0,
            **old_rope(5000.0, {"rope_type": "linear", "factor": 8.0}),
        },
    ),
    "phi3-su": (
        "phi3",
        {**PARTLY, "rope_parameters": {"rope_type": "longrope", **SHORT_AND_LONG}},
        [],
        {**PARTLY, **old_rope(10000.0, {"type": "su", **SHORT_AND_LONG})},
    ),
    "pythia": ("gpt_neox", PYTHIA, ["attention_bias", "num_key_value_heads"], PYTHIA),
}


@pytest.fixture
def assert_same_logits(reference_logits: Logits, our_logits: OurLogits, ids_BT: Tensor) -> SameLogits:
    def check(ours: Decoder, reference: PreTrainedModel) -> None:
        assert (our_logits(ours, ids_BT) - reference_logits(reference, ids_BT)).abs().max() < TOLERANCE

    return check


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_configs_from_before_transformers_5(
    name: str, make_reference: MakeReference, assert_same_logits: SameLogits, tmp_path: Path
) -> None:
    model_type, options, removed, old = OLD_SPELLINGS[name]
    reference = make_reference(model_type, **options)
    reference.save_pretrained(tmp_path)
    values = read_json(tmp_path / "config.json")
    kept = {key: value for key, value in values.items() if key not in ("rope_parameters", *removed)}
    assert len(kept) == len(values) - 1 - len(set(removed) & set(values))
    write_json(tmp_path / "config.json", {**kept, **old})
    assert_same_logits(load_directory(tmp_path), reference)


def rename(path: Path, change: Callable[[str], str], extra: dict[str, Tensor]) -> None:
    """Rename the tensors of a weights file and put further ones beside them."""
    tensors = {change(name): tensor.clone() for name, tensor in load_file(path).items()}
    save_file({**tensors, **extra}, path)


LAYERS = range(3)
OTHER_NAMES: dict[str, tuple[str, dict[str, Any], Callable[[str], str], dict[str, Tensor]]] = {
    "gpt2 without a prefix, with buffers": (
        "gpt2",
        {},
        lambda name: name.removeprefix("transformer."),
        {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in LAYERS}
        | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in LAYERS},
    ),
    "pythia with buffers": (
        "gpt_neox",
        {},
        lambda name: name.replace("lm_head", "embed_out"),
        {f"gpt_neox.layers.{i}.attention.{part}": torch.ones(1) for i in LAYERS for part in ("bias", "masked_bias")}
        | {f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(4) for i in LAYERS},
    ),
    "pythia as transformers 5 names it": ("gpt_neox", {}, lambda name: name.replace("embed_out", "lm_head"), {}),
    "llama with buffers": (
        "llama",
        {},
        lambda name: name,
        {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in LAYERS},
    ),
    "llama without a prefix": (
        "llama",
        {"tie_word_embeddings": True},
        lambda name: name.removeprefix("model."),
        {},
    ),
    "llama with its tied output matrix saved": (
        "llama",
        {"tie_word_embeddings": True},
        lambda name: name,
        {"lm_head.weight": torch.ones(61, 32)},
    ),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_tensor_names_of_older_files(
    name: str, make_reference: MakeReference, assert_same_logits: SameLogits, tmp_path: Path
) -> None:
    model_type, options, change, extra = OTHER_NAMES[name]
    reference = make_reference(model_type, **options)
    reference.save_pretrained(tmp_path)
    rename(tmp_path / "model.safetensors", change, extra)
    assert_same_logits(load_directory(tmp_path), reference)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_inside_gemma_3(prefix: str, assert_same_logits: SameLogits, tmp_path: Path) -> None:
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens: dict[str, Any] = {
        "image_token_index": 63,
        "boi_token_index": 62,
        "eoi_token_index": 61,
        "eos_token_id": [1, 9],
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    reference = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0.0, 0.3)
    reference.save_pretrained(tmp_path)
    stored = (
        "language_model.model."
        if any(name.startswith("language_model.model.") for name in load_file(tmp_path / "model.safetensors"))
        else "model.language_model."
    )
    rename(tmp_path / "model.safetensors", lambda name: name.replace(stored, prefix), {})
    values = read_json(tmp_path / "config.json")
    # hub files leave out of the text part what is as usual
    values["text_config"] = {key: values["text_config"][key] for key in text if key in values["text_config"]}
    values["text_config"]["sliding_window_pattern"] = 2
    del values["text_config"]["num_attention_heads"], values["text_config"]["num_key_value_heads"]
    write_json(tmp_path / "config.json", values)
    model = load_directory(tmp_path)
    assert model.config.family == "gemma3_text"
    assert model.config.eos_ids == (1, 9)
    assert_same_logits(model, reference)


def test_control_tokens_survive(make_reference: MakeReference, tmp_path: Path) -> None:
    reference = make_reference("llama", eos_token_id=5, bos_token_id=4, pad_token_id=None)
    reference.generation_config = GenerationConfig(eos_token_id=[5, 7], bos_token_id=4, pad_token_id=6)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_directory(tmp_path / "theirs")
    assert (model.config.bos_id, model.config.eos_ids, model.config.pad_id) == (4, (5, 7), 6)
    save_directory(model, None, tmp_path / "ours")
    assert load_directory(tmp_path / "ours").config == model.config
    generation = GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (generation.eos_token_id, generation.bos_token_id, generation.pad_token_id) == ([5, 7], 4, 6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.eos_token_id == [5, 7]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_shards(
    family: str,
    make_reference: MakeReference,
    our_logits: OurLogits,
    assert_same_logits: SameLogits,
    ids_BT: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = make_reference(family)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    model = load_directory(tmp_path / "theirs")
    assert_same_logits(model, reference)

    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 20_000)
    save_directory(model, None, tmp_path / "ours")
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 22_000 for file in files)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert_same_logits(model, AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager"))
    assert torch.equal(our_logits(load_directory(tmp_path / "ours"), ids_BT), our_logits(model, ids_BT))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "olmo2"])
def test_bfloat16(
    family: str,
    make_reference: MakeReference,
    reference_logits: Logits,
    our_logits: OurLogits,
    ids_BT: Tensor,
    tmp_path: Path,
) -> None:
    """A bf16 directory stays so, and our rounding is as near to fp32 as that of transformers."""
    reference = make_reference(family).bfloat16()
    reference.save_pretrained(tmp_path / "theirs")
    model = load_directory(tmp_path / "theirs")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    save_directory(model, None, tmp_path / "ours")
    assert read_json(tmp_path / "ours" / "config.json")["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}

    def reference_as(dtype: torch.dtype) -> Tensor:
        # not by casting the model, which would round the rotary frequencies too
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=dtype, attn_implementation="eager")
        return reference_logits(loaded, ids_BT).float()

    exact_BTV = reference_as(torch.float32)
    as_fp32 = load_directory(tmp_path / "theirs", torch.float32)
    assert (our_logits(as_fp32, ids_BT) - exact_BTV).abs().max() < TOLERANCE
    error, their_error = (
        (logits_BTV - exact_BTV).pow(2).mean().sqrt()
        for logits_BTV in (our_logits(model, ids_BT).float(), reference_as(torch.bfloat16))
    )
    assert error < 1.25 * their_error
