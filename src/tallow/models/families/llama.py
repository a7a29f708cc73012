"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), SmolLM2, and all that share their format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_attention_bias, read_llama, write_llama


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        **read_llama(hub),
        **read_attention_bias(hub),
        feed_forward_bias=hub.get("mlp_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(config), "attention_bias": config.qkv_bias, "mlp_bias": config.feed_forward_bias}


FAMILY = Family("llama", "LlamaForCausalLM", read_config, write_config)
