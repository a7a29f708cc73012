"""StarCoder2 (arXiv 2402.19173): LayerNorm and biases everywhere, a plain feed-forward, a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared

LAYER = {**LLAMA_LAYER, "feed_forward.up_proj": "mlp.c_fc", "feed_forward.down_proj": "mlp.c_proj"}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    bias = hub.get("use_bias", True)
    return DecoderConfig(
        family="starcoder2",
        **read_shared({"hidden_act": "gelu_pytorch_tanh", **hub}),
        rotary=read_rotary(hub),
        norm="layer",
        norm_bias=True,
        norm_eps=hub.get("norm_epsilon", 1e-5),
        window=hub.get("sliding_window"),
        gated=False,
        qkv_bias=bias,
        attention_output_bias=bias,
        feed_forward_bias=bias,
        tied_embeddings=hub.get("tie_word_embeddings", True),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_rotary(config.rotary),
        "norm_epsilon": config.norm_eps,
        "norm_type": "layer_norm",
        "mlp_type": "default",
        "sliding_window": config.window,
        "use_bias": config.qkv_bias,
    }


FAMILY = Family("starcoder2", "Starcoder2ForCausalLM", read_config, write_config, layer=LAYER)
