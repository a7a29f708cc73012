"""OLMoE (arXiv 2409.02060): many small experts, queries and keys normalized over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.experts import read_balance_loss, read_experts, with_fused_variant
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import read_attention_bias, read_llama, write_llama

LAYER = {
    **LLAMA_LAYER,
    "feed_forward.router": "mlp.gate",
    "feed_forward.experts.gate_proj": "mlp.experts.{expert}.gate_proj",
    "feed_forward.experts.up_proj": "mlp.experts.{expert}.up_proj",
    "feed_forward.experts.down_proj": "mlp.experts.{expert}.down_proj",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    if hub.get("clip_qkv") is not None:
        raise ValueError("OLMoE models that clip queries, keys and values are not supported")
    return DecoderConfig(
        family="olmoe",
        **read_llama(hub, norm_eps=1e-5),
        **read_attention_bias(hub),
        **read_experts(hub, experts=64, chosen=8),
        **read_balance_loss(hub, 0.01),
        qk_norm="hidden",
        normalize_expert_weights=hub.get("norm_topk_prob", False),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_llama(config),
        "attention_bias": config.qkv_bias,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.normalize_expert_weights,
        "router_aux_loss_coef": config.balance_weight,
    }


FAMILY = with_fused_variant(Family("olmoe", "OlmoeForCausalLM", read_config, write_config, layer=LAYER))
