"""Qwen3 (arXiv 2505.09388): Qwen2 with normalized queries and keys instead of biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared
from tallow.models.families.qwen2 import read_upper_windows, write_upper_windows


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="qwen3",
        **read_shared({"head_dim": 128, **hub}),
        **read_upper_windows(hub),
        rotary=read_rotary(hub),
        norm_eps=hub.get("rms_norm_eps", 1e-6),
        qk_norm="head",
        tied_embeddings=hub.get("tie_word_embeddings", False),
        qkv_bias=hub.get("attention_bias", False),
        attention_output_bias=hub.get("attention_bias", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_upper_windows(config),
        **write_rotary(config.rotary),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
    }


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read_config, write_config)
