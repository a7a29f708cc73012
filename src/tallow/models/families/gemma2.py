"""Gemma 2 (arXiv 2408.00118): norms on both sides, alternating windows, soft caps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import (
    read_attention_bias,
    read_rotary,
    read_shared,
    read_windows,
    write_rotary,
    write_shared,
    write_windows,
)

LAYER = {
    **LLAMA_LAYER,
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    hub = {"head_dim": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, **hub}
    return DecoderConfig(
        family="gemma2",
        **read_gemma(hub),
        **read_windows(hub, lambda layer: layer % 2 == 0),
        rotary=read_rotary(hub),
        attention_softcap=hub["attn_logit_softcapping"],
        logit_softcap=hub.get("final_logit_softcapping", 30.0),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_gemma(config),
        **write_windows(config),
        **write_rotary(config.rotary),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def read_gemma(hub: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 share, as arguments of `DecoderConfig`.

    Raises:
        ValueError: The model attends to both sides (an encoder).
    """
    if hub.get("use_bidirectional_attention"):
        raise ValueError("models with bidirectional attention are not supported")
    shared = read_shared({**hub, "hidden_act": hub.get("hidden_activation") or "gelu_pytorch_tanh"})
    return {
        **shared,
        "norm_eps": hub.get("rms_norm_eps", 1e-6),
        "norm_offset": True,
        "norm_placement": "both",
        "embedding_scale": True,
        "tied_embeddings": hub.get("tie_word_embeddings", True),
        **read_attention_bias(hub),
        "attention_scale": hub.get("query_pre_attn_scalar", 256) ** -0.5,
    }


def write_gemma(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_gemma`."""
    shared = write_shared(config)
    return {
        **shared,
        "hidden_activation": shared["hidden_act"],
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round((config.attention_scale or config.head_size**-0.5) ** -2),
    }


FAMILY = Family("gemma2", "Gemma2ForCausalLM", read_config, write_config, layer=LAYER)
