"""What llama.cpp's architectures say in GGUF metadata, and what they leave unsaid: to and from `DecoderConfig`.

Keys and defaults are those of llama.cpp's converter and loader. Biases, norms, gates and tied embeddings are
nowhere named; they are known by which tensors a file has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gguf
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.models.blocks.positions import inverse_frequencies
from tallow.models.config import DecoderConfig, Rotary, RotaryScaling

Shapes = Mapping[str, tuple[int, ...]]

ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (
    gguf.TENSOR_NAMES[tensor] + ".weight"
    for tensor in (
        gguf.MODEL_TENSOR.ROPE_FREQS,
        gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT,
        gguf.MODEL_TENSOR.ROPE_FACTORS_LONG,
    )
)
"""Tensors of divisors, one a rotary frequency: Llama 3's rule, and LongRoPE's two lists."""

ROPE_TENSORS = (ROPE_FREQS, ROPE_SHORT, ROPE_LONG)
LLAMA3_TRAINED_LENGTH = 8192
ENDS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures: the choices that its code makes without metadata.

    Args:
        family: Our family for it.
        interleaved_rotary: Rotary pairs are neighbours, so rows of the query and key projections are reordered.
        fused_qkv, fused_gate_up: It wants these projections in one tensor.
        always_output: It wants an output matrix even where embeddings are tied.
        gemma: Norms store `1 + weight`, embeddings are scaled, attention's scale follows from the size.
        big_model_layers: Gemma of so many layers scales attention by `hidden_size / num_heads`, not by the head size.
        window, window_every: Default window, and every how many layers one sees everything; 0 for none.
    """

    family: str
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    interleaved_rotary: bool = False
    qk_norm: Literal["head", "hidden"] = "head"
    fused_qkv: bool = False
    fused_gate_up: bool = False
    always_output: bool = False
    gemma: bool = False
    big_model_layers: int = 0
    window: int = 0
    window_every: int = 0
    local_theta: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", interleaved_rotary=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3", fused_qkv=True, fused_gate_up=True),
    "olmo2": Architecture("olmo2", qk_norm="hidden", always_output=True),
    "gemma2": Architecture(
        "gemma2",
        activation="gelu_tanh",
        gemma=True,
        big_model_layers=46,
        window=4096,
        window_every=2,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        activation="gelu_tanh",
        gemma=True,
        big_model_layers=62,
        window_every=6,
        local_theta=10000.0,
    ),
    "gpt2": Architecture("gpt2", activation="gelu_tanh", fused_qkv=True),
    "gptneox": Architecture("gpt_neox", activation="gelu", fused_qkv=True, always_output=True),
    "starcoder2": Architecture("starcoder2", activation="gelu_tanh"),
}

_BY_FAMILY = {known.family: name for name, known in ARCHITECTURES.items()} | {"mistral": "llama"}


def find_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """The architecture that a file names.

    Raises:
        DataError: It names none, or one that is not supported.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise DataError(
            f"GGUF architecture {name!r} is not supported", f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[name]


def architecture_name(family: str) -> str:
    """llama.cpp's name for a family of ours.

    Raises:
        UsageError: It has none.
    """
    if family not in _BY_FAMILY:
        raise UsageError(f"GGUF has no architecture for {family} models", "keep the model as safetensors")
    return _BY_FAMILY[family]


def read_config(metadata: Mapping[str, Any], shapes: Shapes, rope: Mapping[str, Tensor]) -> DecoderConfig:
    """The shape of the model in a GGUF file.

    Args:
        shapes: Of all tensors, by name.
        rope: Those of `ROPE_TENSORS` that the file has, fp32.

    Raises:
        DataError: The architecture is not supported, or metadata is missing, of the wrong type, or contradictory.
    """
    architecture = find_architecture(metadata)
    fields = _Fields(metadata)
    try:
        return _read_config(architecture, fields, shapes, rope)
    except (ValidationError, ZeroDivisionError, OverflowError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"GGUF metadata does not describe a model: {problem}", "convert the model again") from error


def _read_config(
    architecture: Architecture, fields: _Fields, shapes: Shapes, rope: Mapping[str, Tensor]
) -> DecoderConfig:
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise DataError("the GGUF file has no matrix token_embd.weight", "it does not hold a whole language model")
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_size = fields.integer("attention.key_length", hidden_size // num_heads)
    if fields.integer("attention.value_length", head_size) != head_size:
        raise DataError("GGUF models whose values differ in size from their keys are not supported", "")
    num_layers = fields.integer("block_count")
    _check_sizes(fields, shapes, hidden_size, num_heads * head_size, num_layers)
    big = bool(architecture.big_model_layers) and num_layers == architecture.big_model_layers
    window = fields.integer("attention.sliding_window", architecture.window) or None
    rms = "attention.layer_norm_rms_epsilon" in fields
    rotary = _read_rotary(fields, head_size, rope)
    ids = control_tokens(fields.metadata, embedding[0])
    local_theta = fields.number("rope.freq_base_swa", architecture.local_theta or rotary.theta)
    return DecoderConfig(
        family="mistral" if architecture.family == "llama" and window else architecture.family,
        vocab_size=embedding[0],
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_size,
        intermediate_size=fields.integer("feed_forward_length"),
        max_positions=fields.integer("context_length"),
        norm="rms" if rms else "layer",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon"),
        norm_offset=architecture.gemma,
        norm_bias="output_norm.bias" in shapes,
        norm_placement=_norm_placement(shapes),
        parallel_residual=fields.flag("use_parallel_residual", False),
        qk_norm=architecture.qk_norm if "blk.0.attn_q_norm.weight" in shapes else "none",
        qkv_bias="blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes,
        attention_output_bias="blk.0.attn_output.bias" in shapes,
        feed_forward_bias="blk.0.ffn_up.bias" in shapes,
        gated="blk.0.ffn_gate.weight" in shapes or architecture.fused_gate_up,
        activation=architecture.activation,
        positions="learned" if "position_embd.weight" in shapes else "rotary",
        rotary=rotary,
        local_rotary=Rotary(theta=local_theta) if architecture.local_theta and window else None,
        window=window,
        sliding_layers=_read_pattern(fields, num_layers, architecture.window_every) if window else None,
        attention_scale=(hidden_size / num_heads) ** -0.5 if big else None,
        attention_softcap=fields.number("attn_logit_softcapping", architecture.attention_softcap or 0.0) or None,
        logit_softcap=fields.number("final_logit_softcapping", architecture.logit_softcap or 0.0) or None,
        tied_embeddings="output.weight" not in shapes,
        embedding_scale=architecture.gemma,
        bos_id=ids["bos"],
        eos_ids=tuple(dict.fromkeys(value for name in ENDS if (value := ids[name]) is not None)),
        pad_id=ids["padding"],
    )


def write_metadata(config: DecoderConfig) -> dict[str, Any]:
    """The metadata of a model of this shape, by key; integers, floats, booleans, strings and lists of them."""
    name = architecture_name(config.family)
    architecture = ARCHITECTURES[name]
    eps = "attention.layer_norm_rms_epsilon" if config.norm == "rms" else "attention.layer_norm_epsilon"
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        eps: config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if config.family == "gpt_neox":
        values["use_parallel_residual"] = config.parallel_residual
    if config.positions == "rotary":
        values |= _write_rotary(config)
    if config.local_rotary is not None:
        values["rope.freq_base_swa"] = config.local_rotary.theta
    if config.window is not None:
        values["attention.sliding_window"] = config.window
        if config.sliding_layers != _default_pattern(config.num_layers, architecture.window_every):
            values["attention.sliding_window_pattern"] = list(config.sliding_layers or [True] * config.num_layers)
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = config.attention_softcap
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = config.logit_softcap
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in values.items()}}


def refuse_inexpressible(config: DecoderConfig, metadata: Mapping[str, Any], shapes: Shapes) -> None:
    """Check that what is about to be written reads back as the same model.

    Raises:
        UsageError: The model makes a choice that llama.cpp's architecture has no place for.
    """
    try:
        written = _comparable(read_config(metadata, shapes, rope_tensors(config)))
        differing = sorted(name for name, value in _comparable(config).items() if written[name] != value)
        problem = f"llama.cpp has no place for its {', '.join(differing)}" if differing else ""
    except DataError as error:
        problem = error.message
    if problem:
        raise UsageError(f"GGUF cannot express this {config.family} model: {problem}", "keep it as safetensors")


def rope_tensors(config: DecoderConfig) -> dict[str, Tensor]:
    """The tensors of rotary divisors that this model's scaling wants in the file."""
    scaling = config.rotary.scaling
    if config.positions != "rotary" or scaling is None:
        return {}
    if scaling.kind == "longrope":
        return {ROPE_SHORT: torch.tensor(scaling.short_factors), ROPE_LONG: torch.tensor(scaling.long_factors)}
    if scaling.kind == "llama3":
        return {ROPE_FREQS: _llama3_factors(config.rotary, config.head_size, config.max_positions)}
    return {}


# ---- positions -------------------------------------------------------------------------------------


def _read_rotary(fields: _Fields, head_size: int, rope: Mapping[str, Tensor]) -> Rotary:
    rotated = fields.integer("rope.dimension_count", head_size)
    fraction = rotated / head_size
    if int(head_size * fraction) < rotated:  # the quotient was rounded down
        fraction = math.nextafter(fraction, 2.0)
    rotary = Rotary(theta=fields.number("rope.freq_base", 10000.0), fraction=fraction)
    if any(tensor.shape != (rotated // 2,) or not (tensor > 0).all() for tensor in rope.values()):
        raise DataError(f"{', '.join(rope)} do not fit {rotated} rotated entries", "convert the model again")
    scaling = _read_scaling(fields, rotary, head_size, rope)
    return rotary.model_copy(update={"scaling": scaling})


def _read_scaling(fields: _Fields, rotary: Rotary, head_size: int, rope: Mapping[str, Tensor]) -> RotaryScaling | None:
    if ROPE_FREQS in rope:
        return _read_llama3(fields, rotary, head_size, rope[ROPE_FREQS])
    trained = fields.integer("rope.scaling.original_context_length", fields.integer("context_length"))
    if ROPE_SHORT in rope and ROPE_LONG in rope:
        return RotaryScaling(
            kind="longrope",
            original_max_positions=trained,
            short_factors=tuple(rope[ROPE_SHORT].tolist()),
            long_factors=tuple(rope[ROPE_LONG].tolist()),
            attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
        )
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    # files from before `rope.scaling.type` mean the linear rule
    kind = fields.text("rope.scaling.type", "none" if factor == 1.0 else "linear")
    if kind == "none":
        return None
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=factor)
    if kind == "yarn":
        known: dict[str, Any] = {name: fields.number(key) for name, key in _YARN_FIELDS.items() if key in fields}
        return RotaryScaling(kind="yarn", factor=factor, original_max_positions=trained, **known)
    raise DataError(f"rotary scaling {kind!r} is not supported", "supported: linear, yarn, longrope and Llama 3's")


def _read_llama3(fields: _Fields, rotary: Rotary, head_size: int, factors: Tensor) -> RotaryScaling:
    """Llama 3's rule with the constants of all its releases, if it gives the factors that the file holds."""
    scaling = RotaryScaling(
        kind="llama3",
        factor=round(float(factors.max()), 4),
        original_max_positions=fields.integer("rope.scaling.original_context_length", LLAMA3_TRAINED_LENGTH),
    )
    ours = _llama3_factors(rotary.model_copy(update={"scaling": scaling}), head_size, fields.integer("context_length"))
    if not torch.allclose(ours, factors, rtol=1e-3):
        raise DataError(
            f"the tensor {ROPE_FREQS} follows another rule than Llama 3's scaling", "this model is not supported"
        )
    return scaling


def _llama3_factors(rotary: Rotary, head_size: int, max_positions: int) -> Tensor:
    rotated = rotary.rotated_size(head_size)
    plain, _ = inverse_frequencies(rotary.model_copy(update={"scaling": None}), rotated, max_positions, 1)
    scaled, _ = inverse_frequencies(rotary, rotated, max_positions, 1)
    return plain / scaled


def _write_rotary(config: DecoderConfig) -> dict[str, Any]:
    rotary = _complete(config.rotary, config)
    values: dict[str, Any] = {
        "rope.dimension_count": rotary.rotated_size(config.head_size),
        "rope.freq_base": rotary.theta,
    }
    scaling = rotary.scaling
    if scaling is None:
        return values
    if scaling.kind in ("linear", "yarn", "longrope"):
        values["rope.scaling.type"] = scaling.kind
    if scaling.kind in ("linear", "yarn"):  # llama.cpp would also stretch LongRoPE's frequencies by a factor
        values["rope.scaling.factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn", "longrope"):
        values["rope.scaling.original_context_length"] = scaling.original_max_positions
    if scaling.kind == "longrope":
        values["rope.scaling.attn_factor"] = scaling.attention_factor
    if scaling.kind == "yarn":
        given = scaling.model_dump(exclude_none=True)
        values |= {key: given[name] for name, key in _YARN_FIELDS.items() if name in given}
    return values


def _complete(rotary: Rotary, config: DecoderConfig) -> Rotary:
    """The same rotary embedding with everything said that its scaling leaves to a default."""
    scaling = rotary.scaling
    if scaling is None:
        return rotary
    trained = scaling.original_max_positions or config.max_positions
    update: dict[str, Any] = {"factor": scaling.factor or config.max_positions / trained}
    update["original_max_positions"] = None if scaling.kind == "linear" else trained
    if scaling.kind == "longrope":
        rotated = rotary.rotated_size(config.head_size)
        magnitude = inverse_frequencies(rotary, rotated, config.max_positions, 1)[1]
        update |= {"factor": None, "attention_factor": float(str(np.float32(magnitude)))}
    return rotary.model_copy(update={"scaling": scaling.model_copy(update=update)})


_YARN_FIELDS = {
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
}


# ---- small parts -----------------------------------------------------------------------------------


def _check_sizes(fields: _Fields, shapes: Shapes, hidden_size: int, query_size: int, num_layers: int) -> None:
    """Compare sizes with a few tensors, so that hostile numbers are refused before anything is built of them.

    Raises:
        DataError: Metadata and tensors are not of the same model.
    """
    claims = {
        "token_embd.weight": ("embedding_length", hidden_size),
        "blk.0.attn_output.weight": ("attention.head_count and attention.key_length", query_size),
        "blk.0.ffn_down.weight": ("feed_forward_length", fields.integer("feed_forward_length")),
    }
    for name, (keys, claimed) in claims.items():
        if name not in shapes or shapes[name][-1] != claimed:
            raise DataError(
                f"GGUF metadata {keys} says {claimed}, but {name} is {shapes.get(name, 'missing')}",
                "convert the model again",
            )
    if num_layers > len(shapes) or not any(name.startswith(f"blk.{num_layers - 1}.") for name in shapes):
        raise DataError(f"GGUF metadata claims {num_layers} layers, which the file lacks", "convert the model again")
    positions = shapes.get("position_embd.weight")
    if positions is not None and positions[0] != fields.integer("context_length"):
        raise DataError("GGUF metadata context_length differs from position_embd.weight", "convert the model again")


def _norm_placement(shapes: Shapes) -> Literal["pre", "post", "both"]:
    if "blk.0.attn_norm.weight" not in shapes:
        return "post"
    return "both" if "blk.0.post_attention_norm.weight" in shapes else "pre"


def _default_pattern(num_layers: int, every: int) -> tuple[bool, ...] | None:
    """Which layers slide where each `every`-th sees everything; None: all do."""
    return tuple(layer % every < every - 1 for layer in range(num_layers)) if every else None


def _read_pattern(fields: _Fields, num_layers: int, every: int) -> tuple[bool, ...] | None:
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return tuple(bool(slides) for slides in pattern[:num_layers])
    return _default_pattern(num_layers, fields.integer("attention.sliding_window_pattern", every))


def control_tokens(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, int | None]:
    """Ids of the control tokens `bos`, `eos`, `eot` (end of turn), `eom` (of message), `unknown` and `padding`.

    A sentencepiece tokenizer has defaults for some, and ids beyond the vocabulary count as absent, as in llama.cpp.
    """
    ids: dict[str, int | None] = {}
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if metadata.get("tokenizer.ggml.model") == "llama" else {}
    for name in ("bos", *ENDS, "unknown", "padding"):
        value = metadata.get(f"tokenizer.ggml.{name}_token_id", defaults.get(name))
        ids[name] = value if isinstance(value, int) and 0 <= value < vocab_size else None
    return ids


def write_control_tokens(config: DecoderConfig) -> dict[str, Any]:
    """The inverse, from what the model's configuration names; end tokens beyond the third have no place."""
    ids = {"bos": config.bos_id, **dict(zip(ENDS, config.eos_ids, strict=False)), "padding": config.pad_id}
    return {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items() if value is not None}


def _comparable(config: DecoderConfig) -> dict[str, Any]:
    """A model's choices in one spelling, without those that go with the tokenizer or have no effect."""
    scale = config.attention_scale or config.head_size**-0.5
    values = config.model_dump(exclude={"family", "bos_id", "eos_ids", "pad_id"})
    values |= {"head_dim": config.head_size, "attention_scale": f"{scale:.6g}"}
    values["rotary"] = _comparable_rotary(config.rotary, config) if config.positions == "rotary" else None
    if config.local_rotary is not None:
        values["local_rotary"] = _comparable_rotary(config.local_rotary, config)
    if config.window is None:
        values |= {"sliding_layers": None, "local_rotary": None}
    elif config.sliding_layers is None:
        values["sliding_layers"] = (True,) * config.num_layers
    if ARCHITECTURES[architecture_name(config.family)].always_output:
        values["tied_embeddings"] = False  # the matrix is written twice
    return values


def _comparable_rotary(rotary: Rotary, config: DecoderConfig) -> dict[str, Any]:
    values = _complete(rotary, config).model_dump()
    values["fraction"] = rotary.rotated_size(config.head_size)
    for name in ("short_factors", "long_factors") if rotary.scaling is not None else ():
        values["scaling"][name] = [float(np.float32(factor)) for factor in values["scaling"][name]]
    return values


class _Fields:
    """Typed access to the metadata of one architecture: keys are given without its name."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata, self.prefix = metadata, f"{metadata['general.architecture']}."

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def get(self, key: str) -> Any:
        return self.metadata.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A float in the shortest spelling that is the same in single precision: 1e-05, not 9.999999747e-06."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        with np.errstate(over="ignore"):
            single = np.float32(value)
        if not np.isfinite(single):
            raise self._wrong(key, "a finite number")
        return float(str(single))

    def flag(self, key: str, default: bool) -> bool:
        value = self._required(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._required(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def _required(self, key: str, default: Any) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise DataError(f"GGUF metadata lacks {self.prefix}{key}", "convert the model again")
        return value

    def _wrong(self, key: str, kind: str) -> DataError:
        value = self.metadata.get(self.prefix + key)
        return DataError(
            f"GGUF metadata {self.prefix}{key} is not {kind}: {str(value)[:40]}", "convert the model again"
        )
