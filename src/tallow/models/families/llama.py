"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), SmolLM2, and all that share their format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        **read_shared(hub),
        rotary=read_rotary(hub),
        norm_eps=hub.get("rms_norm_eps", 1e-6),
        tied_embeddings=hub.get("tie_word_embeddings", False),
        qkv_bias=hub.get("attention_bias", False),
        attention_output_bias=hub.get("attention_bias", False),
        feed_forward_bias=hub.get("mlp_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_rotary(config.rotary),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.feed_forward_bias,
    }


FAMILY = Family("llama", "LlamaForCausalLM", read_config, write_config)
