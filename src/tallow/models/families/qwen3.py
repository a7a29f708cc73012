"""Qwen3 (arXiv 2505.09388): Qwen2 with normalized queries and keys instead of biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_attention_bias, read_llama, write_llama
from tallow.models.families.qwen2 import read_upper_windows, write_upper_windows


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="qwen3",
        **read_llama({"head_dim": 128, **hub}),
        **read_attention_bias(hub),
        **read_upper_windows(hub),
        qk_norm="head",
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(config), **write_upper_windows(config), "attention_bias": config.qkv_bias}


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read_config, write_config)
