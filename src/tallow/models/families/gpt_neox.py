"""GPT-NeoX (arXiv 2204.06745) and Pythia (2304.01373): parallel residual, partly rotated heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family, Layout
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared

OUTSIDE = {
    "embed": "gpt_neox.embed_in",
    "layers": "gpt_neox.layers",
    "norm": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",
}
LAYER = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    **dict.fromkeys(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.query_key_value"),
    "attention.o_proj": "attention.dense",
    "feed_forward.up_proj": "mlp.dense_h_to_4h",
    "feed_forward.down_proj": "mlp.dense_4h_to_h",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    bias = hub.get("attention_bias", True)
    hub = {"hidden_act": "gelu", **hub, "num_key_value_heads": None, "head_dim": None}
    return DecoderConfig(
        family="gpt_neox",
        **read_shared(hub),
        rotary=read_rotary({"rope_theta": hub.get("rotary_emb_base"), **hub}, fraction=hub.get("rotary_pct", 0.25)),
        norm="layer",
        norm_bias=True,
        norm_eps=hub.get("layer_norm_eps", 1e-5),
        parallel_residual=hub.get("use_parallel_residual", True),
        gated=False,
        qkv_bias=bias,
        attention_output_bias=bias,
        feed_forward_bias=True,
        tied_embeddings=hub.get("tie_word_embeddings", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_shared(config),
        **write_rotary(config.rotary),
        "rotary_pct": config.rotary.fraction,
        "rotary_emb_base": config.rotary.theta,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
    }


def layouts(config: DecoderConfig) -> dict[str, Layout]:
    """Rows of the fused matrix: for each head its queries, keys and values."""
    heads, head_size = config.num_heads, config.head_size

    def split(tensor: Tensor) -> list[Tensor]:
        return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, head_size)).unbind(1)]

    def join(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.unflatten(0, (heads, head_size)) for part in parts], dim=1).flatten(0, 2)

    return {"attention.query_key_value": Layout(split, join)}


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    read_config,
    write_config,
    layer=LAYER,
    outside=OUTSIDE,
    layouts=layouts,
    aliases=(("gpt_neox.", ""), ("embed_out.", "lm_head.")),
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
)
