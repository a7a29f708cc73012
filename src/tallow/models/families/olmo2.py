"""OLMo 2 (arXiv 2501.00656): norms after each sub-layer, queries and keys normalized over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import read_attention_bias, read_llama, write_llama

LAYER = {
    **LLAMA_LAYER,
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="olmo2",
        **read_llama(hub, norm_eps=1e-5),
        **read_attention_bias(hub),
        norm_placement="post",
        qk_norm="hidden",
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(config), "attention_bias": config.qkv_bias}


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read_config, write_config, layer=LAYER)
