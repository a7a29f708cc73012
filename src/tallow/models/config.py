"""Every architectural choice of a causal decoder, by name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tallow.recipe import Section

MAX_LAYERS = 10_000
"""More layers than this are taken for a broken file, before anything is built."""
MAX_EXPERTS = 10_000
"""More experts than this, too."""

Size = Annotated[int, Field(gt=0, lt=2**31)]
Activation = Literal["silu", "gelu", "gelu_tanh"]
RouterBalance = Literal["none", "loss", "bias"]


class RotaryScaling(Section):
    """How rotary frequencies change beyond the trained length.

    Sources: linear interpolation (arXiv 2306.15595), dynamic NTK (as in `transformers`), YaRN
    (2309.00071, section 3), Llama 3.1's piecewise rule (2407.21783, section 3.4 and its released code),
    LongRoPE (2402.13753, as in Phi-3).

    Args:
        kind: The rule.
        factor: How much longer than trained; YaRN and LongRoPE may leave it to the ratio of the lengths.
        original_max_positions: The trained length; None for the model's `max_positions`.
        low_freq_factor: Llama 3.1: frequencies with fewer turns over the trained length are divided by `factor`.
        high_freq_factor: Llama 3.1: frequencies with more turns over the trained length stay; between, a blend.
        beta_fast: YaRN: frequencies with more turns over the trained length stay.
        beta_slow: YaRN: frequencies with fewer turns over the trained length are divided by `factor`; between, a blend.
        mscale: YaRN, with `mscale_all_dim`: weight of `ln factor` in the factor on cosines and sines.
        mscale_all_dim: YaRN, with `mscale`: weight of `ln factor` in what that factor is divided by.
        truncate: YaRN: the ends of the blend are rounded outwards to whole frequencies.
        attention_factor: YaRN and LongRoPE: factor on cosines and sines; None for their own rule.
        short_factors: LongRoPE: divisors of each frequency, within the trained length.
        long_factors: LongRoPE: divisors of each frequency, beyond the trained length.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: PositiveFloat | None = None
    original_max_positions: Size | None = None
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factors: tuple[PositiveFloat, ...] = ()
    long_factors: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.factor is None and self.kind in ("linear", "dynamic", "llama3"):
            raise ValueError(f"rotary scaling {self.kind} needs a factor")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies change with the length of the present sequence."""
        return self.kind in ("dynamic", "longrope")

    def stretch(self, max_positions: int) -> float:
        """`factor`, or where it is left open the ratio of the model's length to the trained one."""
        return self.factor or max_positions / (self.original_max_positions or max_positions)


class Rotary(Section):
    """Rotary position embedding (arXiv 2104.09864), in the two-halves layout.

    Args:
        theta: Base of the geometric sequence of wavelengths.
        fraction: Share of each head that is rotated; the rest passes as it is.
        scaling: Extension beyond the trained length; None for none.
    """

    theta: float = Field(default=10000.0, gt=1.0)
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    scaling: RotaryScaling | None = None

    def rotated_size(self, head_size: int) -> int:
        """Number of entries of a head that are rotated."""
        return int(head_size * self.fraction)


class DecoderConfig(Section):
    """Shape and choices of a causal decoder; the defaults are a small Llama.

    Args:
        family: The hub format that it is saved as (`llama`, `qwen3`, …); it does not change the computation.
        vocab_size: Rows of the embedding; a recipe may leave 0, meaning "as the tokenizer says".
        hidden_size: Entries of the vector that stands for a token between layers.
        num_layers: Layers, each an attention and a feed-forward.
        num_heads: Query heads.
        num_kv_heads: Heads of keys and values, shared by groups of query heads; it divides `num_heads`.
        head_dim: Size of one head; None for `hidden_size // num_heads`.
        max_positions: Longest sequence the model is meant for, in tokens.
        intermediate_size: Inner size of the feed-forward, or of each expert.
        norm: RMSNorm (arXiv 1910.07467) or LayerNorm.
        norm_eps: Added to the mean square, or to the variance, before the root.
        norm_bias: LayerNorm adds a bias.
        norm_offset: The norm multiplies by `1 + weight` (Gemma).
        norm_placement: Norms before a sub-layer, after it (OLMo 2), or both (Gemma 2 and 3).
        parallel_residual: Attention and feed-forward read the same input (GPT-NeoX).
        qk_norm: Queries and keys are normalized: each head by itself, or all heads together (OLMo 2).
        qkv_bias: The projections to queries, keys and values add a bias.
        attention_output_bias: The projection after attention adds a bias.
        feed_forward_bias: The linear layers of the feed-forward add a bias.
        gated: The feed-forward multiplies by an activated gate (SwiGLU, GeGLU; arXiv 2002.05202).
        activation: Of the gate, or of the plain feed-forward; `gelu_tanh` is GELU's usual approximation.
        num_experts: Feed-forwards in each layer, of which a router chooses some for each token; 0: one, for all tokens.
        experts_per_token: Experts that compute a token.
        router_scores: Softmax of the router's logits, or the sigmoid of each (arXiv 2412.19437, section 2.1.2).
        normalize_expert_weights: The scores of a token's experts are divided by their sum (Mixtral: which is a softmax
            over the chosen alone), else used as they are (OLMoE).
        router_balance: What evens the use of experts in training: nothing, an auxiliary loss in each sequence
            (arXiv 2412.19437, section 2.1.2), or a bias on the choice (2408.15664), which is part of the model.
        router_balance_weight: Factor of the auxiliary loss of each layer, or step of the bias; None for 0.01 and 0.001.
        positions: Rotary, or a learned table (GPT-2).
        local_rotary: Rotary of the sliding-window layers, where it differs (Gemma 3).
        window: Tokens that a sliding layer sees, itself included; None for all.
        sliding_layers: For each layer whether it slides; None: all do if there is a window.
        attention_scale: Multiplies q·k; None for `head_dim ** -0.5`.
        attention_softcap: `cap · tanh(x / cap)` on attention scores (Gemma 2); None for no cap.
        logit_softcap: `cap · tanh(x / cap)` on logits (Gemma 2); None for no cap.
        tied_embeddings: The output matrix is the token embedding.
        embedding_scale: Embeddings are multiplied by `sqrt(hidden_size)` (Gemma).
        bos_id: The token that begins a text, if there is one.
        eos_ids: The tokens that end a text; in a recipe, none means "as the tokenizer says".
        pad_id: The token that fills up rows of a batch, if there is one.
    """

    family: str = "llama"
    vocab_size: int = Field(default=0, ge=0, lt=2**31)
    hidden_size: Size = 256
    num_layers: int = Field(default=6, gt=0, le=MAX_LAYERS)
    num_heads: Size = 4
    num_kv_heads: Size = 4
    head_dim: Size | None = None
    intermediate_size: Size = 768
    max_positions: Size = 1024

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
    activation: Activation = "silu"

    num_experts: int = Field(default=0, ge=0, le=MAX_EXPERTS)
    experts_per_token: PositiveInt = 2
    router_scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize_expert_weights: bool = True
    router_balance: RouterBalance = "loss"
    router_balance_weight: PositiveFloat | None = None

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
        if self.num_experts:
            self._check_experts()
        if self.positions == "rotary":
            for rotary in filter(None, (self.rotary, self.local_rotary)):
                self._check_rotary(rotary)
        return self

    def _check_experts(self) -> None:
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than num_experts {self.num_experts}")
        if not self.gated or self.feed_forward_bias:
            raise ValueError("experts are gated and have no biases")

    def _check_rotary(self, rotary: Rotary) -> None:
        rotated, scaling = rotary.rotated_size(self.head_size), rotary.scaling
        if rotated < 2 or rotated % 2:
            raise ValueError(f"rotary positions need an even number of entries of each head, not {rotated}")
        if scaling is None:
            return
        if scaling.kind == "dynamic" and rotated == 2:
            raise ValueError("dynamic rotary scaling needs heads of more than 2 entries")
        factors = (scaling.short_factors, scaling.long_factors)
        if scaling.kind == "longrope" and any(len(part) != rotated // 2 for part in factors):
            raise ValueError(f"longrope needs {rotated // 2} short and as many long factors")
        if scaling.kind == "longrope" and (scaling.original_max_positions or self.max_positions) < 2:
            raise ValueError("longrope needs a trained length of at least 2")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def balance_weight(self) -> float:
        """Factor of the auxiliary loss, or step of the bias; 0 where nothing evens the use of experts."""
        if not self.num_experts or self.router_balance == "none":
            return 0.0
        return self.router_balance_weight or (0.01 if self.router_balance == "loss" else 0.001)

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
