"""OLMo 2 (arXiv 2501.00656): norms after each sub-layer, queries and keys normalized over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared

LAYER = {
    **LLAMA_LAYER,
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="olmo2",
        **read_shared(hub),
        rotary=read_rotary(hub),
        norm_eps=hub.get("rms_norm_eps", 1e-5),
        norm_placement="post",
        qk_norm="hidden",
        tied_embeddings=hub.get("tie_word_embeddings", False),
        qkv_bias=hub.get("attention_bias", False),
        attention_output_bias=hub.get("attention_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_rotary(config.rotary),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
    }


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read_config, write_config, layer=LAYER)
