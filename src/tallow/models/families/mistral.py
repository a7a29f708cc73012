"""Mistral (arXiv 2310.06825): Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_llama, write_llama


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="mistral",
        **read_llama(hub),
        window=hub.get("sliding_window", 4096),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(config), "sliding_window": config.window}


FAMILY = Family("mistral", "MistralForCausalLM", read_config, write_config)
