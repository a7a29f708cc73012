"""Every architectural choice of a causal decoder, by name."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tallow.recipe import Section


class RotaryScaling(Section):
    """How rotary frequencies change beyond the trained length.

    Sources: linear interpolation (arXiv 2306.15595), dynamic NTK (as in `transformers`), YaRN
    (2309.00071, section 3), Llama 3.1's piecewise rule (2407.21783, section 3.4 and its released code).
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: PositiveFloat = 1.0
    original_max_positions: PositiveInt | None = None
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class Rotary(Section):
    """Rotary position embedding (arXiv 2104.09864), in the two-halves layout.

    Args:
        theta: Base of the geometric sequence of wavelengths.
        fraction: Share of each head that is rotated; the rest passes as it is.
        scaling: Extension beyond the trained length; None for none.
    """

    theta: PositiveFloat = 10000.0
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    scaling: RotaryScaling | None = None


class DecoderConfig(Section):
    """Shape and choices of a causal decoder; the defaults are a small Llama.

    Args:
        family: The hub format that it is saved as (`llama`, `qwen3`, …); it does not change the computation.
        vocab_size: Rows of the embedding; a recipe may leave 0, meaning "as the tokenizer says".
        head_dim: Size of one head; None for `hidden_size // num_heads`.
        max_positions: Longest sequence the model is meant for, in tokens.
        norm: RMSNorm (arXiv 1910.07467) or LayerNorm.
        norm_offset: The norm multiplies by `1 + weight` (Gemma).
        norm_placement: Norms before a sub-layer, after it (OLMo 2), or both (Gemma 2 and 3).
        parallel_residual: Attention and feed-forward read the same input (GPT-NeoX).
        qk_norm: Queries and keys are normalized: each head by itself, or all heads together (OLMo 2).
        positions: Rotary, or a learned table (GPT-2).
        local_rotary: Rotary of the sliding-window layers, where it differs (Gemma 3).
        window: Tokens that a sliding layer sees, itself included; None for all.
        sliding_layers: For each layer whether it slides; None: all do if there is a window.
        attention_scale: Multiplies q·k; None for `head_dim ** -0.5`.
        attention_softcap, logit_softcap: `cap · tanh(x / cap)` on attention scores and on logits (Gemma 2).
        embedding_scale: Embeddings are multiplied by `sqrt(hidden_size)` (Gemma).
        bos_id, eos_ids, pad_id: Control tokens, as `config.json` and `generation_config.json` name them.
    """

    family: str = "llama"
    vocab_size: int = Field(default=0, ge=0)
    hidden_size: PositiveInt = 256
    num_layers: PositiveInt = 6
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt = 4
    head_dim: PositiveInt | None = None
    intermediate_size: PositiveInt = 768
    max_positions: PositiveInt = 1024

    norm: Literal["rms", "layer"] = "rms"
    norm_eps: PositiveFloat = 1e-5
    norm_offset: bool = False
    norm_bias: bool = False
    norm_placement: Literal["pre", "post", "both"] = "pre"
    parallel_residual: bool = False
    qk_norm: Literal["none", "head", "hidden"] = "none"

    qkv_bias: bool = False
    attention_output_bias: bool = False
    feed_forward_bias: bool = False
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"

    positions: Literal["rotary", "learned"] = "rotary"
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None
    window: PositiveInt | None = None
    sliding_layers: tuple[bool, ...] | None = None
    attention_scale: PositiveFloat | None = None
    attention_softcap: PositiveFloat | None = None
    logit_softcap: PositiveFloat | None = None

    tied_embeddings: bool = True
    embedding_scale: bool = False

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.sliding_layers is not None and len(self.sliding_layers) != self.num_layers:
            raise ValueError(f"sliding_layers names {len(self.sliding_layers)} layers of {self.num_layers}")
        if self.sliding_layers is not None and any(self.sliding_layers) and self.window is None:
            raise ValueError("sliding_layers needs a window")
        return self

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def layer_window(self, layer: int) -> int | None:
        """Window of a layer in tokens, None where it sees everything before it."""
        if self.sliding_layers is None or self.sliding_layers[layer]:
            return self.window
        return None

    def layer_rotary(self, layer: int) -> Rotary:
        """Rotary embedding of a layer."""
        if self.local_rotary is not None and self.layer_window(layer) is not None:
            return self.local_rotary
        return self.rotary
