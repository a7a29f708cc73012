"""The fields of `config.json` that most families share, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tallow.models.config import MAX_LAYERS, Activation, DecoderConfig, Rotary, RotaryScaling

ACTIVATIONS: dict[Activation, str] = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Our names of activations → the hub's."""

_ACTIVATION_NAMES: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

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
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
_FIELDS_OF_RULE = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor",
        "original_max_positions",
        *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": ("factor", "original_max_positions", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_max_positions", "attention_factor", "short_factors", "long_factors"),
}


def read_shared(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes, activation and control tokens, as arguments of `DecoderConfig`.

    Raises:
        KeyError: A field without which no model can be built is missing.
    """
    heads = hub["num_attention_heads"]
    return {
        "vocab_size": hub["vocab_size"],
        "hidden_size": hub["hidden_size"],
        "num_layers": hub["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": hub.get("num_key_value_heads") or heads,
        "head_dim": hub.get("head_dim"),
        "intermediate_size": hub["intermediate_size"],
        "max_positions": hub["max_position_embeddings"],
        "activation": read_activation(hub.get("hidden_act", "silu")),
        **read_control_tokens(hub),
    }


def write_shared(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_shared`, without control tokens, and whether embeddings are tied."""
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
        "tie_word_embeddings": config.tied_embeddings,
    }


def read_llama(hub: Mapping[str, Any], *, norm_eps: float = 1e-6) -> dict[str, Any]:
    """What Llama and its nearest heirs have in common, as arguments of `DecoderConfig`.

    Args:
        norm_eps: Where the file does not say.
    """
    return {
        **read_shared(hub),
        "rotary": read_rotary(hub),
        "norm_eps": hub.get("rms_norm_eps", norm_eps),
        "tied_embeddings": hub.get("tie_word_embeddings", False),
    }


def write_llama(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_llama`."""
    return {**write_shared(config), **write_rotary(config.rotary), "rms_norm_eps": config.norm_eps}


def read_attention_bias(hub: Mapping[str, Any]) -> dict[str, Any]:
    """One switch for the biases of all four attention matrices, as arguments of `DecoderConfig`."""
    bias = hub.get("attention_bias", False)
    return {"qkv_bias": bias, "attention_output_bias": bias}


def read_activation(name: str) -> Activation:
    """Our name of a hub activation.

    Raises:
        ValueError: It is one that no supported family uses.
    """
    if name not in _ACTIVATION_NAMES:
        raise ValueError(f"the activation {name!r} is not supported")
    return _ACTIVATION_NAMES[name]


def read_control_tokens(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the control tokens; `eos_token_id` may be one or a list."""
    eos = hub.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    return {"bos_id": hub.get("bos_token_id"), "eos_ids": eos_ids, "pad_id": hub.get("pad_token_id")}


def write_control_tokens(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_control_tokens`, for `config.json` and `generation_config.json`."""
    eos = list(config.eos_ids)
    tokens = {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }
    return {key: value for key, value in tokens.items() if value is not None}


def read_windows(hub: Mapping[str, Any], slides: Callable[[int], bool]) -> dict[str, Any]:
    """The sliding window and the layers that have it, as arguments of `DecoderConfig`.

    Args:
        slides: Whether a layer slides, where `layer_types` does not say.

    Raises:
        ValueError: A layer is of an unknown type, or there are too many.
    """
    num_layers = hub["num_hidden_layers"]
    if num_layers > MAX_LAYERS:  # before a list of them is made
        raise ValueError(f"num_hidden_layers is {num_layers}")
    kinds = hub.get("layer_types")
    if kinds is None:
        sliding_layers = tuple(slides(layer) for layer in range(num_layers))
    else:
        unknown = [kind for kind in kinds if kind not in ("sliding_attention", "full_attention")]
        if unknown:
            raise ValueError(f"layers of the type {unknown[0]!r} are not supported")
        sliding_layers = tuple(kind == "sliding_attention" for kind in kinds)
    if not any(sliding_layers):
        return {}
    return {"window": hub.get("sliding_window"), "sliding_layers": sliding_layers}


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_windows`."""
    windows = [config.layer_window(layer) for layer in range(config.num_layers)]
    return {
        "sliding_window": config.window if any(windows) else None,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def read_rotary(hub: Mapping[str, Any], *, fraction: float | None = None) -> Rotary:
    """Rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Args:
        fraction: Share of a head that is rotated where the file does not say; None for a family that
            rotates whole heads whatever it says.

    Raises:
        ValueError: The scaling rule is unknown, or a value is none that can be.
    """
    values = hub.get("rope_scaling") or hub.get("rope_parameters") or {}
    given = [value for value in (values.get("rope_theta"), hub.get("rope_theta")) if value is not None]
    for value in given[1:]:  # one that does not count shows all the same that the file is damaged
        Rotary(theta=value)
    said = values.get("partial_rotary_factor") or hub.get("partial_rotary_factor")
    return Rotary(
        theta=given[0] if given else 10000.0,
        fraction=1.0 if fraction is None else said or fraction,
        scaling=_read_scaling(values, hub.get("original_max_position_embeddings")),
    )


def _read_scaling(values: Mapping[str, Any], original_max_positions: int | None) -> RotaryScaling | None:
    rule = values.get("rope_type") or values.get("type") or "default"
    if rule == "default":
        return None
    if rule not in _FIELDS_OF_RULE:
        raise ValueError(f"the rotary scaling {rule!r} is not supported")
    given = {name: values.get(_SCALING_FIELDS[name]) for name in _FIELDS_OF_RULE[rule]}
    if "original_max_positions" in given and original_max_positions is not None:
        given["original_max_positions"] = original_max_positions
    return RotaryScaling(kind=rule, **{name: value for name, value in given.items() if value is not None})


def write_rotary(rotary: Rotary) -> dict[str, Any]:
    """The inverse of `read_rotary`, in the spelling of transformers 5 and in the one before."""
    parameters = rotary_parameters(rotary)
    old = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
    return {
        "rope_parameters": parameters,
        "rope_theta": rotary.theta,
        "rope_scaling": None if rotary.scaling is None else old,
    }


def rotary_parameters(rotary: Rotary) -> dict[str, Any]:
    """One entry of `rope_parameters`."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.scaling is not None:
        values = rotary.scaling.model_dump(mode="json")
        known = {name: values[name] for name in _FIELDS_OF_RULE[rotary.scaling.kind] if values[name] is not None}
        parameters |= {"rope_type": rotary.scaling.kind} | {_SCALING_FIELDS[name]: known[name] for name in known}
    if rotary.fraction != 1.0:
        parameters["partial_rotary_factor"] = rotary.fraction
    return parameters
