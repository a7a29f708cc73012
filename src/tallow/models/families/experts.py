"""What families with experts share: fields of `config.json`, and the files in which transformers 5 may fuse them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family, Layout

GATE_UP = "mlp.experts.gate_up_proj"
FUSED = {
    "feed_forward.router": "mlp.gate",
    "feed_forward.router.bias": "mlp.e_score_correction_bias",
    "feed_forward.experts.gate_proj.weight": GATE_UP,
    "feed_forward.experts.up_proj.weight": GATE_UP,
    "feed_forward.experts.down_proj.weight": "mlp.experts.down_proj",
}


def read_experts(hub: Mapping[str, Any], *, experts: int, chosen: int) -> dict[str, Any]:
    """Number of experts, and of those that compute a token, as arguments of `DecoderConfig`.

    Args:
        experts: In a layer, where the file does not say.
        chosen: Experts of a token, likewise.

    Raises:
        ValueError: There are none.
    """
    num_experts = hub.get("num_local_experts", hub.get("num_experts", experts))
    if not num_experts:
        raise ValueError("there are no experts")
    return {"num_experts": num_experts, "experts_per_token": hub.get("num_experts_per_tok", chosen)}


def read_balance_loss(hub: Mapping[str, Any], usual: float) -> dict[str, Any]:
    """The auxiliary loss that evens the use of experts, as arguments of `DecoderConfig`.

    Args:
        usual: Its factor, where the file does not say.
    """
    factor = hub.get("router_aux_loss_coef", usual)
    return {"router_balance": "loss", "router_balance_weight": factor} if factor else {"router_balance": "none"}


def with_fused_variant(family: Family) -> Family:
    """The family, which then also reads what transformers 5 saves with `save_original_format=False`.

    Those files hold the weights of all experts of a layer as two stacks, of gates over ups and of downs, under the
    names that transformers' own modules have.
    """
    layer = {name: there for name, there in family.layer.items() if not name.startswith("feed_forward.")}
    fused = replace(family, layer={**layer, **FUSED}, layouts=_fused_layouts)
    return replace(family, variants=((GATE_UP, fused),))


def _fused_layouts(config: DecoderConfig) -> dict[str, Layout]:
    def split(tensor: Tensor) -> Sequence[Tensor]:
        return tensor.split(config.intermediate_size, dim=1)

    return {GATE_UP: Layout(split, lambda parts: torch.cat(tuple(parts), dim=1))}
