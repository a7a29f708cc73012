"""Mistral (arXiv 2310.06825): Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="mistral",
        **read_shared(hub),
        rotary=read_rotary(hub),
        norm_eps=hub.get("rms_norm_eps", 1e-6),
        window=hub.get("sliding_window", 4096),
        tied_embeddings=hub.get("tie_word_embeddings", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_rotary(config.rotary),
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.window,
    }


FAMILY = Family("mistral", "MistralForCausalLM", read_config, write_config)
