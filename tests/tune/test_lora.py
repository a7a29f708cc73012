"""Adapters: they start as the base, merge exactly, and are the peft library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from tallow.errors import DataError
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, save_model
from tallow.tune.adapter import load_adapter, save_adapter
from tallow.tune.lora import LoraConfig, adapters, add_adapters, merge_adapters

from .conftest import tiny_model

TOKENS = torch.arange(2, 22).reshape(2, 10)
SHAPE: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=48)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, intermediate_size=48, pad_token_id=0)),
}


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model.logits(model(TOKENS, SequenceContext.plain(TOKENS.shape[0], TOKENS.shape[1])))


def randomize(model: Decoder) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, adapter in adapters(model):
        adapter.lora_B.data.normal_(0.0, 0.1, generator=generator)


def test_an_adapted_model_starts_as_its_base_and_trains_adapters_alone() -> None:
    model = tiny_model(60)
    before = logits(model)
    add_adapters(model, LoraConfig(rank=4), seed=0)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(list(adapters(model))) == 2 * 7


def test_experts_have_no_adapters() -> None:
    model = Decoder(tiny_model(60).config.model_copy(update={"num_experts": 4}))
    add_adapters(model, LoraConfig(rank=4), seed=0)
    assert len(list(adapters(model))) == 2 * 4


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_merging_changes_nothing_but_the_layers(rank_stabilized: bool) -> None:
    model = tiny_model(60)
    names = [name for name, _ in model.named_parameters()]
    add_adapters(model, LoraConfig(rank=4, rank_stabilized=rank_stabilized), seed=0)
    randomize(model)
    adapted = logits(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("family", MODELS)
def test_a_saved_adapter_gives_the_same_logits_here_and_in_peft(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[family]().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    targets = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    add_adapters(model, LoraConfig(rank=3, alpha=5.0, targets=targets), seed=0)
    randomize(model)
    adapted = logits(model)
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))

    fresh = load_model(tmp_path / "base")
    load_adapter(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(fresh), adapted, atol=1e-5, rtol=1e-5)

    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(TOKENS).logits, adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "rslora"),
    [("llama", ["q_proj", "down_proj"], True), ("gpt2", ["c_attn", "c_fc"], False), ("phi3", ["qkv_proj"], False)],
)
def test_an_adapter_of_peft_gives_the_same_logits_here(
    family: str, targets: list[str], rslora: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = MODELS[family]()
    base.save_pretrained(tmp_path / "base")
    config = PeftConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, init_lora_weights=False)
    peft = get_peft_model(base, config).eval()
    peft.save_pretrained(str(tmp_path / "adapter"))
    model = load_model(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(logits(model), peft(TOKENS).logits, atol=1e-4, rtol=1e-4)
    merge_adapters(model)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), peft(TOKENS).logits, atol=1e-4, rtol=1e-4)


def test_broken_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    model = tiny_model(60)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    save_adapter(model, tmp_path / "a", "base")
    save_model(tiny_model(60), None, tmp_path / "base")

    def fresh() -> Decoder:
        return load_model(tmp_path / "base")

    with pytest.raises(DataError, match="does not exist"):
        load_adapter(fresh(), tmp_path / "none")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="broken"):
        load_adapter(fresh(), tmp_path / "a")
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(DataError, match="not a plain LoRA"):
        load_adapter(fresh(), tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    other = fresh()
    del other.layers[1:]
    other.config = other.config.model_copy(update={"num_layers": 1})
    with pytest.raises(DataError, match="which the model lacks"):
        load_adapter(other, tmp_path / "a")
