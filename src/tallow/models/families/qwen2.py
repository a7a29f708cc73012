"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_llama, read_windows, write_llama, write_windows


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="qwen2",
        **read_llama(hub),
        **read_upper_windows(hub),
        qkv_bias=True,
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {**write_llama(config), **write_upper_windows(config)}


def read_upper_windows(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's way to say windows: a switch, and the number of layers at the bottom that have none."""
    if not hub.get("use_sliding_window") or hub.get("sliding_window") is None:
        return {}
    first = hub.get("max_window_layers", 28)
    return read_windows(hub, lambda layer: layer >= first)


def write_upper_windows(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_upper_windows`."""
    slides = [config.layer_window(layer) is not None for layer in range(config.num_layers)]
    return {
        **write_windows(config),
        "use_sliding_window": any(slides),
        "max_window_layers": slides.index(True) if any(slides) else config.num_layers,
    }


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read_config, write_config)
