"""GPT-2 (Radford et al., 2019): learned positions; matrices stored inputs first, queries, keys and values fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tallow.models.config import DecoderConfig
from tallow.models.families.family import TRANSPOSED, Family, Layout
from tallow.models.families.fields import ACTIVATIONS, read_activation, read_control_tokens

OUTSIDE = {
    "embed": "transformer.wte",
    "embed_positions": "transformer.wpe",
    "layers": "transformer.h",
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
LAYER = {
    "attention_norm": "ln_1",
    "feed_forward_norm": "ln_2",
    **dict.fromkeys(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attn.c_attn"),
    "attention.o_proj": "attn.c_proj",
    "feed_forward.up_proj": "mlp.c_fc",
    "feed_forward.down_proj": "mlp.c_proj",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    for variant in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if hub.get(variant):
            raise ValueError(f"GPT-2 models with {variant} are not supported")
    return DecoderConfig(
        family="gpt2",
        vocab_size=hub["vocab_size"],
        hidden_size=hub["n_embd"],
        num_layers=hub["n_layer"],
        num_heads=hub["n_head"],
        num_kv_heads=hub["n_head"],
        intermediate_size=hub.get("n_inner") or 4 * hub["n_embd"],
        max_positions=hub["n_positions"],
        norm="layer",
        norm_bias=True,
        norm_eps=hub.get("layer_norm_epsilon", 1e-5),
        gated=False,
        activation=read_activation(hub.get("activation_function", "gelu_new")),
        positions="learned",
        attention_scale=None if hub.get("scale_attn_weights", True) else 1.0,
        qkv_bias=True,
        attention_output_bias=True,
        feed_forward_bias=True,
        tied_embeddings=hub.get("tie_word_embeddings", True),
        **read_control_tokens(hub),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATIONS[config.activation],
        "scale_attn_weights": config.attention_scale != 1.0,
        "tie_word_embeddings": config.tied_embeddings,
    }


def layouts(config: DecoderConfig) -> dict[str, Layout]:
    fused = Layout(
        lambda tensor: tensor.t().split(config.hidden_size),
        lambda parts: torch.cat(tuple(parts)).t(),
    )
    return {
        "attn.c_attn": fused,
        **dict.fromkeys(("attn.c_proj", "mlp.c_fc", "mlp.c_proj"), TRANSPOSED),
    }


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    read_config,
    write_config,
    layer=LAYER,
    outside=OUTSIDE,
    layouts=layouts,
    aliases=(("transformer.", ""),),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
