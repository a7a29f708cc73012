"""MiniMax-M2: Mixtral with sigmoid scores, biases on the choice of experts (as DeepSeek-V3, arXiv 2412.19437, section
2.1.2), partly rotated heads, and queries and keys normalized over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families import mixtral
from tallow.models.families.experts import read_experts, with_fused_variant
from tallow.models.families.family import Family
from tallow.models.families.fields import read_llama, read_rotary, write_llama

LAYER = {**mixtral.LAYER, "feed_forward.router.bias": "block_sparse_moe.e_score_correction_bias"}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    if hub.get("scoring_func", "sigmoid") != "sigmoid" or not hub.get("use_routing_bias", True):
        raise ValueError("MiniMax-M2 models have sigmoid scores and biases on the choice of experts")
    if not hub.get("use_qk_norm", True) or hub.get("qk_norm_type", "per_layer") != "per_layer":
        raise ValueError("MiniMax-M2 models normalize queries and keys over all heads")
    if hub.get("shared_intermediate_size"):
        raise ValueError("experts that compute every token are not supported")
    hub = {"head_dim": 128, **hub}
    fraction = hub["rotary_dim"] / hub["head_dim"] if hub.get("rotary_dim") else 1.0
    values = read_llama(hub) | {"rotary": read_rotary(hub, fraction=fraction)}
    return DecoderConfig(
        family="minimax_m2",
        **values,
        **read_experts(hub, experts=256, chosen=8),
        qk_norm="hidden",
        router_scores="sigmoid",
        router_balance="bias",
        router_balance_weight=hub.get("router_bias_update_rate"),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_llama(config),
        "rotary_dim": config.rotary.rotated_size(config.head_size),
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "router_bias_update_rate": config.balance_weight,
    }


FAMILY = with_fused_variant(Family("minimax_m2", "MiniMaxM2ForCausalLM", read_config, write_config, layer=LAYER))
