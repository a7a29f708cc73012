"""Mixtral (arXiv 2401.04088): Mistral whose feed-forwards are mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.experts import read_balance_loss, read_experts, with_fused_variant
from tallow.models.families.family import LLAMA_LAYER, Family
from tallow.models.families.fields import read_llama, write_llama

LAYER = {
    **LLAMA_LAYER,
    "feed_forward.router": "block_sparse_moe.gate",
    "feed_forward.experts.gate_proj": "block_sparse_moe.experts.{expert}.w1",
    "feed_forward.experts.up_proj": "block_sparse_moe.experts.{expert}.w3",
    "feed_forward.experts.down_proj": "block_sparse_moe.experts.{expert}.w2",
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        family="mixtral",
        **read_llama(hub, norm_eps=1e-5),
        **read_experts(hub, experts=8, chosen=2),
        **read_balance_loss(hub, 0.001),
        window=hub.get("sliding_window"),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        **write_llama(config),
        "sliding_window": config.window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.balance_weight,
    }


FAMILY = with_fused_variant(Family("mixtral", "MixtralForCausalLM", read_config, write_config, layer=LAYER))
