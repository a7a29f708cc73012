"""Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): Llama with fused matrices; LongRoPE beyond 4k tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import LLAMA_LAYER, Family, Layout, stacked
from tallow.models.families.fields import read_rotary, read_shared, write_rotary, write_shared

LAYER = {
    **LLAMA_LAYER,
    **dict.fromkeys(("attention.q_proj", "attention.k_proj", "attention.v_proj"), "self_attn.qkv_proj"),
    **dict.fromkeys(("feed_forward.gate_proj", "feed_forward.up_proj"), "mlp.gate_up_proj"),
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    scaling = hub.get("rope_scaling")
    if scaling and scaling.get("type") in ("su", "yarn"):  # early names of the same rule
        scaling = {**scaling, "type": "longrope"}
    hub = {"original_max_position_embeddings": 4096, **hub, "rope_scaling": scaling}
    rotary = read_rotary(hub, fraction=1.0)
    if rotary.scaling is not None and rotary.scaling.kind != "longrope":
        raise ValueError(f"Phi-3 knows no rotary scaling {rotary.scaling.kind!r}")
    return DecoderConfig(
        family="phi3",
        **read_shared(hub),
        rotary=rotary,
        norm_eps=hub.get("rms_norm_eps", 1e-5),
        window=hub.get("sliding_window"),
        tied_embeddings=hub.get("tie_word_embeddings", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    rotary, scaling = write_rotary(config.rotary), config.rotary.scaling
    if scaling is not None:
        trained = scaling.original_max_positions or config.max_positions
        # readers from before transformers 5 know the rule by `type` and refuse any field but the factors
        fields = ("short_factor", "long_factor", "attention_factor", "factor")
        old = {key: rotary["rope_parameters"][key] for key in fields if key in rotary["rope_parameters"]}
        rotary |= {"rope_scaling": {"type": scaling.kind, **old}, "original_max_position_embeddings": trained}
    return {
        **write_shared(config),
        **rotary,
        "partial_rotary_factor": config.rotary.fraction,
        "rms_norm_eps": config.norm_eps,
        "sliding_window": config.window,
    }


def layouts(config: DecoderConfig) -> dict[str, Layout]:
    query_size, kv_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    return {
        "self_attn.qkv_proj": stacked(query_size, kv_size, kv_size),
        "mlp.gate_up_proj": stacked(config.intermediate_size, config.intermediate_size),
    }


FAMILY = Family("phi3", "Phi3ForCausalLM", read_config, write_config, layer=LAYER, layouts=layouts)
