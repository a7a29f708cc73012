"""Gemma 3's language model (arXiv 2503.19786), alone or inside the model that also sees images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.config import DecoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import read_rotary, read_windows, rotary_parameters, write_windows
from tallow.models.families.gemma2 import LAYER, read_gemma, write_gemma

# the text part of a config.json with images leaves out what is as here
_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}


def read_config(hub: Mapping[str, Any]) -> DecoderConfig:
    if "text_config" in hub:
        # ids of the control tokens stand outside, where generation_config.json puts them too
        hub = {**_DEFAULTS, **hub["text_config"], **{key: hub[key] for key in hub if key.endswith("_token_id")}}
    rotary = hub.get("rope_parameters") or {}
    pattern = hub.get("sliding_window_pattern", 6)
    return DecoderConfig(
        family="gemma3_text",
        **read_gemma(hub),
        **read_windows(hub, lambda layer: (layer + 1) % pattern > 0),
        qk_norm="head",
        rotary=read_rotary(
            {
                "rope_theta": hub.get("rope_theta", _DEFAULTS["rope_theta"]),
                "rope_parameters": {**(rotary.get("full_attention") or {}), **(hub.get("rope_scaling") or {})},
            }
        ),
        local_rotary=read_rotary(
            {
                "rope_theta": hub.get("rope_local_base_freq", _DEFAULTS["rope_local_base_freq"]),
                "rope_parameters": rotary.get("sliding_attention"),
            }
        ),
        logit_softcap=hub.get("final_logit_softcapping"),
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    everywhere, local = config.rotary, config.local_rotary or config.rotary
    return {
        **write_gemma(config),
        **write_windows(config),
        "rope_parameters": {
            "full_attention": rotary_parameters(everywhere),
            "sliding_attention": rotary_parameters(local),
        },
        "rope_theta": everywhere.theta,
        "rope_local_base_freq": local.theta,
        "final_logit_softcapping": config.logit_softcap,
    }


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    read_config,
    write_config,
    layer=LAYER,
    other_names=("gemma3",),
    aliases=(("model.", "language_model.model."), ("model.", "model.language_model."), ("model.", "")),
)
