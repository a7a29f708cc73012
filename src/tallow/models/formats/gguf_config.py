"""What llama.cpp's architectures say in GGUF metadata, and what they leave unsaid: to and from `DecoderConfig`.

Keys and defaults are those of llama.cpp's converter and loader. Biases, norms, gates and tied embeddings are
nowhere named; they are known by which tensors a file has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gguf
from pydantic import ValidationError
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.models.config import DecoderConfig, Rotary
from tallow.models.formats.gguf_fields import Fields
from tallow.models.formats.gguf_rotary import complete_rotary, read_rotary, rope_tensors, write_rotary

Shapes = Mapping[str, tuple[int, ...]]

ENDS = ("eos", "eot", "eom")
"""llama.cpp's names of tokens that end an answer: of the sequence, the turn, the message."""


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
        local_theta: Default rotary base of window layers, where they have one of their own.
        attention_softcap, logit_softcap: Defaults, 0 for none; None where there can be none.
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
        logit_softcap=0.0,
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
    fields = Fields(metadata)
    if fields.integer("expert_count", 0):
        raise DataError("GGUF models with experts are not supported", "take the model as safetensors")
    try:
        return _read_config(architecture, fields, shapes, rope)
    except (ValidationError, ZeroDivisionError, OverflowError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"GGUF metadata does not describe a model: {problem}", "convert the model again") from error


def _read_config(
    architecture: Architecture, fields: Fields, shapes: Shapes, rope: Mapping[str, Tensor]
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
    rotary = read_rotary(fields, head_size, rope)
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
        attention_softcap=_softcap(fields, "attn_logit_softcapping", architecture.attention_softcap),
        logit_softcap=_softcap(fields, "final_logit_softcapping", architecture.logit_softcap),
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
        values |= write_rotary(config)
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
        differing = [name for name, value in _comparable(config).items() if written[name] != value]
        names = sorted(differing or _foreign_tensors(metadata["general.architecture"], shapes))
        problem = f"llama.cpp has no place for its {', '.join(names)}" if names else ""
    except DataError as error:
        problem = error.message
    if problem:
        raise UsageError(f"GGUF cannot express this {config.family} model: {problem}", "keep it as safetensors")


# ---- small parts -----------------------------------------------------------------------------------


def _check_sizes(fields: Fields, shapes: Shapes, hidden_size: int, query_size: int, num_layers: int) -> None:
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


def _foreign_tensors(name: str, tensors: Iterable[str]) -> set[str]:
    """Those that llama.cpp's architecture of this name does not have."""
    architecture = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]}
    return {re.sub(r"^blk\.\d+", "blk.{bid}", tensor.rpartition(".")[0]) for tensor in tensors} - known


def _softcap(fields: Fields, key: str, default: float | None) -> float | None:
    return None if default is None else fields.number(key, default) or None


def _norm_placement(shapes: Shapes) -> Literal["pre", "post", "both"]:
    if "blk.0.attn_norm.weight" not in shapes:
        return "post"
    return "both" if "blk.0.post_attention_norm.weight" in shapes else "pre"


def _default_pattern(num_layers: int, every: int) -> tuple[bool, ...] | None:
    """Which layers slide where each `every`-th sees everything; None: all do."""
    return tuple(layer % every < every - 1 for layer in range(num_layers)) if every else None


def _read_pattern(fields: Fields, num_layers: int, every: int) -> tuple[bool, ...] | None:
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
    values = config.model_dump(exclude={"family", "bos_id", "eos_ids", "pad_id"})
    values |= {
        "head_dim": config.head_size,
        "attention_scale": config.attention_scale or config.head_size**-0.5,
    }
    values["rotary"] = _comparable_rotary(config.rotary, config) if config.positions == "rotary" else None
    if config.local_rotary is not None:
        values["local_rotary"] = _comparable_rotary(config.local_rotary, config)
    if config.window is None:
        values |= {"sliding_layers": None, "local_rotary": None}
    elif config.sliding_layers is None:
        values["sliding_layers"] = (True,) * config.num_layers
    if ARCHITECTURES[architecture_name(config.family)].always_output:
        values["tied_embeddings"] = False  # the matrix is written twice
    return _rounded(values)


def _comparable_rotary(rotary: Rotary, config: DecoderConfig) -> dict[str, Any]:
    values = complete_rotary(rotary, config).model_dump()
    values["fraction"] = rotary.rotated_size(config.head_size)
    return values


def _rounded(value: Any) -> Any:
    """Floats within a value to six digits, which single precision keeps."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
