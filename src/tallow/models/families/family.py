"""What a family is: how the hub's `config.json` and tensor names map to the one decoder skeleton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tallow.errors import DataError
from tallow.models.config import DecoderConfig, Rotary, RotaryScaling
from tallow.models.decoder import Decoder


def _alone(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class TensorMap:
    """One tensor of the hub's files and the parameters of ours that it holds.

    Args:
        hub: Its name in the files.
        ours: Names of the decoder's parameters in it; several where the family stores them fused.
        split: From the stored tensor to our parameters (views where it can).
        join: The inverse.
    """

    hub: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]] = _alone
    join: Callable[[Sequence[Tensor]], Tensor] = _first


@dataclass(frozen=True)
class Family:
    """A hub format.

    Args:
        name: `model_type` in `config.json`.
        architecture: Entry of `architectures` in `config.json`.
        read_config: From the values of `config.json`.
        write_config: Back to them, without the fields that all families share.
        tensors: All tensors of a model of this shape.
    """

    name: str
    architecture: str
    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    write_config: Callable[[DecoderConfig], dict[str, Any]]
    tensors: Callable[[DecoderConfig], list[TensorMap]]


# ---- what most families share ----------------------------------------------------------------------

_ATTENTION = {f"attention.{part}_proj": f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")}
_QK_NORMS = {f"attention.{part}_norm": f"self_attn.{part}_norm" for part in ("q", "k")}
_FEED_FORWARD = {f"feed_forward.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    **_ATTENTION,
    **_QK_NORMS,
    **_FEED_FORWARD,
}
"""Names of a layer's modules: ours → the hub's, as Llama and most later families have them."""


def renamed_tensors(
    parameters: Sequence[str], layer: Mapping[str, str], outside: Mapping[str, str] | None = None
) -> list[TensorMap]:
    """One hub tensor for each of `parameters` (names of ours), by renaming modules.

    Args:
        layer: Our module names below `layers.N.` → the hub's below `model.layers.N.`.
        outside: The same outside of the layers; default: Llama's.
    """
    outside = outside or {"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
    maps = []
    for parameter in parameters:
        module, _, kind = parameter.rpartition(".")
        if module.startswith("layers."):
            _, index, below = module.split(".", 2)
            maps.append(TensorMap(f"model.layers.{index}.{layer[below]}.{kind}", (parameter,)))
        else:
            maps.append(TensorMap(f"{outside[module]}.{kind}", (parameter,)))
    return maps


def parameter_names(config: DecoderConfig) -> list[str]:
    """Names of all parameters of a decoder of this shape."""
    with torch.device("meta"):
        return [name for name, _ in Decoder(config).named_parameters()]


def read_shared(hub: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that nearly all families spell alike, as arguments of `DecoderConfig`.

    Raises:
        DataError: A field without which no model can be built is missing.
    """
    try:
        heads = hub["num_attention_heads"]
        return {
            "family": hub["model_type"],
            "vocab_size": hub["vocab_size"],
            "hidden_size": hub["hidden_size"],
            "num_layers": hub["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": hub.get("num_key_value_heads") or heads,
            "head_dim": hub.get("head_dim"),
            "intermediate_size": hub["intermediate_size"],
            "max_positions": hub["max_position_embeddings"],
            "rotary": read_rotary(hub),
            "activation": read_activation(hub.get("hidden_act") or hub.get("hidden_activation")),
            **read_control_tokens(hub),
        }
    except KeyError as error:
        raise DataError(f"config.json has no {error.args[0]}", "restore it from the model's source") from error


def write_shared(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_shared`, with the norm's epsilon and the tying of embeddings."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        **write_rotary(config.rotary),
    }


ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_activation(name: str | None) -> str:
    """Our name of a hub activation.

    Raises:
        DataError: It is one that no supported family uses.
    """
    try:
        return _ACTIVATION_NAMES[name or "silu"]
    except KeyError as error:
        raise DataError(f"config.json names the unknown activation {name!r}", "this model is not supported") from error


def read_control_tokens(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the control tokens; `eos_token_id` may be one or a list."""
    eos = hub.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return {"bos_id": hub.get("bos_token_id"), "eos_ids": eos_ids, "pad_id": hub.get("pad_token_id")}


def read_rotary(hub: Mapping[str, Any], *, theta: float = 10000.0) -> Rotary:
    """Rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Raises:
        DataError: The scaling rule is unknown.
    """
    values = dict(hub.get("rope_parameters") or hub.get("rope_scaling") or {})
    kind = values.get("rope_type") or values.get("type") or "default"
    base = values.get("rope_theta") or hub.get("rope_theta") or hub.get("rotary_emb_base") or theta
    fraction = values.get("partial_rotary_factor") or hub.get("partial_rotary_factor") or hub.get("rotary_pct") or 1.0
    if kind == "default":
        return Rotary(theta=base, fraction=fraction)
    if kind not in ("linear", "dynamic", "yarn", "llama3"):
        raise DataError(f"config.json names the unknown rotary scaling {kind!r}", "this model is not supported")
    known = {ours: values[theirs] for ours, theirs in _SCALING_FIELDS.items() if values.get(theirs) is not None}
    return Rotary(theta=base, fraction=fraction, scaling=RotaryScaling(kind=kind, **known))


def write_rotary(rotary: Rotary) -> dict[str, Any]:
    """The inverse of `read_rotary`, in the spelling of transformers 5, with `rope_theta` for older readers."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.scaling is not None:
        parameters["rope_type"] = rotary.scaling.kind
        given = rotary.scaling.model_dump(exclude_defaults=True)
        parameters |= {_SCALING_FIELDS[name]: value for name, value in given.items() if name in _SCALING_FIELDS}
        parameters["factor"] = rotary.scaling.factor
    if rotary.fraction != 1.0:
        parameters["partial_rotary_factor"] = rotary.fraction
    old = {key: value for key, value in parameters.items() if key != "rope_theta"} if rotary.scaling else None
    return {"rope_parameters": parameters, "rope_theta": rotary.theta, "rope_scaling": old}


_SCALING_FIELDS = {
    "factor": "factor",
    "original_max_positions": "original_max_position_embeddings",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}
