"""BERT (arXiv 1810.04805) with its masked-token head, or with one that labels tokens; the pooler and the next-sentence
head are left aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallow.models.encoder_config import EncoderConfig
from tallow.models.families.family import Family
from tallow.models.families.fields import ACTIVATIONS, read_activation

OUTSIDE = {
    "embed": "bert.embeddings.word_embeddings",
    "embed_positions": "bert.embeddings.position_embeddings",
    "embed_types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "layers": "bert.encoder.layer",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
    "classifier": "classifier",
}
LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def read_config(hub: Mapping[str, Any]) -> EncoderConfig:
    for variant in ("is_decoder", "add_cross_attention"):
        if hub.get(variant):
            raise ValueError(f"BERT models with {variant} are not supported")
    if (kind := hub.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"BERT models with positions of the type {kind!r} are not supported")
    if not hub.get("tie_word_embeddings", True):
        raise ValueError("BERT models with an output matrix of their own are not supported")
    return EncoderConfig(
        family="bert",
        vocab_size=hub["vocab_size"],
        hidden_size=hub["hidden_size"],
        num_layers=hub["num_hidden_layers"],
        num_heads=hub["num_attention_heads"],
        intermediate_size=hub["intermediate_size"],
        max_positions=hub["max_position_embeddings"],
        num_token_types=hub.get("type_vocab_size", 2),
        norm_eps=hub.get("layer_norm_eps", 1e-12),
        activation=read_activation(hub.get("hidden_act", "gelu")),
        pad_id=hub.get("pad_token_id"),
    )


def write_config(config: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATIONS[config.activation],
        "tie_word_embeddings": True,
        "pad_token_id": config.pad_id,
    }


FAMILY = Family(
    "bert",
    "BertForMaskedLM",
    read_config,
    write_config,
    layer=LAYER,
    outside=OUTSIDE,
    tagger="BertForTokenClassification",
    aliases=(("bert.", ""),),
    # as files have them that were converted from the released checkpoints
    endings=((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")),
    ignored=(),
)
