"""A dense model made a mixture of experts (sparse upcycling; arXiv 2212.05055)."""

from __future__ import annotations

import torch

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.growth.settings import Growth
from tallow.models.initialization import DEVIATION
from tallow.models.skeletons import Model, ModelConfig, build
from tallow.recipe import parse_section

FEED_FORWARD, EXPERTS, ROUTER = ".feed_forward.", ".feed_forward.experts.", "feed_forward.router.weight"


def with_experts(config: ModelConfig, growth: Growth) -> ModelConfig:
    """The shape whose feed-forwards have become mixtures.

    The scores of a token's experts are divided by their sum: that of equal experts is then one of them.

    Raises:
        UsageError: It is an encoder, or its feed-forwards are mixtures already or not such as experts are.
    """
    if growth.num_experts is None:
        return config
    if not isinstance(config, DecoderConfig):
        raise UsageError("encoders have no experts", "leave grow.num_experts out")
    if config.num_experts:
        raise UsageError(
            f"the model is a mixture of {config.num_experts} experts already", "leave grow.num_experts out"
        )
    changes = {
        "family": growth.family or "mixtral",
        "num_experts": growth.num_experts,
        "experts_per_token": growth.experts_per_token,
        "normalize_expert_weights": True,
    }
    return parse_section(DecoderConfig, {**config.model_dump(), **changes}, "grow")


def upcycle(model: Model, config: ModelConfig, generator: torch.Generator) -> Model:
    """The model whose every expert is a copy of the feed-forward of its layer; routers are drawn."""
    assert isinstance(config, DecoderConfig)
    grown = {}
    for name, value in model.state_dict().items():
        if FEED_FORWARD in name:
            experts = value.expand(config.num_experts, *value.shape)
            grown[name.replace(FEED_FORWARD, EXPERTS)] = experts
        else:
            grown[name] = value
    for layer in range(config.num_layers):
        router_ED = torch.empty(config.num_experts, config.hidden_size)
        grown[f"layers.{layer}.{ROUTER}"] = router_ED.normal_(0.0, DEVIATION, generator=generator)
    mixture = build(config)
    mixture.load_state_dict(grown)
    return mixture
