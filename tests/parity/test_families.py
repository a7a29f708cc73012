"""Every family against `transformers`: both directions, fp32, eager attention.

Measured over all cases and three inputs: at most 2.1e-5, on logits of deviation 1 to 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tallow.models.config import Rotary
from tallow.models.decoder import Decoder
from tallow.models.families import FAMILIES
from tallow.models.formats.hub import load_directory, save_directory

TOLERANCE = 5e-5
SHOWS = 1e-2
FACTORS = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
FULL_THEN_SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]


@dataclass(frozen=True)
class Case:
    """A configuration of a family.

    Args:
        family: `model_type`.
        options: Values of the hub's config beside the tiny sizes.
        without: Choices of ours that take the tested feature away; the logits must then differ visibly.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] | None = None


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


PLAIN = {"rotary": Rotary()}
NO_WINDOW = {"window": None, "sliding_layers": None}
CASES = {
    "llama": Case("llama", {}, {"rotary": Rotary(theta=500.0)}),
    "llama-grouped": Case("llama", {"num_key_value_heads": 2}),
    "llama-multi-query": Case("llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama-tied": Case("llama", {"tie_word_embeddings": True}),
    "llama-biases": Case("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2}, {"norm_eps": 1e-5}),
    "llama-linear": Case("llama", rope("linear", factor=4.0), PLAIN),
    "llama-dynamic": Case("llama", {**rope("dynamic", factor=3.0), "max_position_embeddings": 16}, PLAIN),
    "llama-llama3": Case(
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
        PLAIN,
    ),
    "llama-yarn": Case("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16), PLAIN),
    "llama-yarn-settings": Case(
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=0.5,
            mscale=1.4,
            mscale_all_dim=0.6,
            truncate=False,
        ),
        PLAIN,
    ),
    "llama-yarn-attention-factor": Case(
        "llama", rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.5), PLAIN
    ),
    "mistral": Case("mistral", {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 12}),
    "mistral-window": Case("mistral", {"num_key_value_heads": 2, "sliding_window": 5}, NO_WINDOW),
    "qwen2": Case("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-window": Case("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, NO_WINDOW),
    "qwen2-layer-types": Case(
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": FULL_THEN_SLIDING[::-1]},
        {"sliding_layers": (False, True, True)},
    ),
    "qwen3": Case("qwen3", {"num_key_value_heads": 2, "head_dim": 16}, {"rotary": Rotary(theta=500.0)}),
    "qwen3-biases-window": Case(
        "qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": FULL_THEN_SLIDING,
            "tie_word_embeddings": True,
        },
        NO_WINDOW,
    ),
    "gemma2": Case(
        "gemma2",
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 20},
        NO_WINDOW,
    ),
    "gemma2-soft-caps": Case(
        "gemma2",
        {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "query_pre_attn_scalar": 2,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
        },
        {"attention_softcap": None},
    ),
    "gemma2-no-caps": Case(
        "gemma2",
        {
            "num_key_value_heads": 4,
            "head_dim": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": FULL_THEN_SLIDING,
            "sliding_window": 3,
        },
        {"sliding_layers": (True, True, True)},
    ),
    "gemma3": Case(
        "gemma3_text",
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2},
        {"local_rotary": None},
    ),
    "gemma3-scaled": Case(
        "gemma3_text",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 5,
            "layer_types": FULL_THEN_SLIDING,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        {"rotary": Rotary(theta=5000.0)},
    ),
    "phi3": Case("phi3", {"num_key_value_heads": 2}),
    "phi3-window-partial": Case(
        "phi3",
        {"sliding_window": 5, "tie_word_embeddings": True, **rope("default", partial_rotary_factor=0.5)},
        {"rotary": Rotary()},
    ),
    "phi3-longrope-long": Case("phi3", {**rope("longrope", **FACTORS), "original_max_position_embeddings": 16}, PLAIN),
    "phi3-longrope-short": Case("phi3", {**rope("longrope", **FACTORS), "original_max_position_embeddings": 48}, PLAIN),
    "phi3-longrope-factor": Case(
        "phi3",
        {
            **rope("longrope", short_factor=[1.1, 1.3, 2.0], long_factor=[1.0, 3.0, 5.0], factor=6.0),
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.75,
        },
        {"rotary": Rotary(fraction=0.75)},
    ),
    "olmo2": Case("olmo2", {"num_key_value_heads": 2}, {"norm_eps": 1.0}),
    "olmo2-biases": Case("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    "mixtral": Case("mixtral", {"num_key_value_heads": 2, "num_local_experts": 5}, {"normalize_expert_weights": False}),
    "mixtral-window-three": Case(
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 5, "tie_word_embeddings": True},
        {"experts_per_token": 2},
    ),
    "minimax_m2": Case(
        "minimax_m2",
        {
            "num_key_value_heads": 2,
            "head_dim": 12,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            **rope("default", partial_rotary_factor=0.5),
        },
        {"router_scores": "softmax"},
    ),
    "olmoe": Case(
        "olmoe",
        {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 3},
        {"normalize_expert_weights": True},
    ),
    "olmoe-normalized-biases": Case(
        "olmoe",
        {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": True, "attention_bias": True},
        {"normalize_expert_weights": False},
    ),
    "gpt2": Case("gpt2", {"n_inner": 40}, {"activation": "silu"}),
    "gpt2-unscaled": Case(
        "gpt2",
        {"scale_attn_weights": False, "activation_function": "gelu", "tie_word_embeddings": False},
        {"attention_scale": None},
    ),
    "gpt_neox": Case("gpt_neox", {"rotary_pct": 0.25}, {"parallel_residual": False}),
    "gpt_neox-sequential": Case(
        "gpt_neox",
        {"use_parallel_residual": False, "rotary_pct": 0.5, "attention_bias": False, "tie_word_embeddings": True},
        {"parallel_residual": True},
    ),
    "gpt_neox-whole-heads": Case("gpt_neox", {"rotary_pct": 1.0}, {"rotary": Rotary(fraction=0.25)}),
    "gpt_neox-dynamic": Case(
        "gpt_neox",
        {
            **rope("dynamic", factor=2.0, partial_rotary_factor=0.5),
            "max_position_embeddings": 16,
        },
        {"rotary": Rotary(fraction=0.5)},
    ),
    "starcoder2": Case("starcoder2", {"num_key_value_heads": 2, "sliding_window": 5}, NO_WINDOW),
    "starcoder2-no-biases": Case(
        "starcoder2", {"num_key_value_heads": 1, "use_bias": False, "tie_word_embeddings": False}
    ),
}


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == {family.name for family in FAMILIES.values()}


@pytest.mark.parametrize("name", CASES)
def test_parity(
    name: str,
    make_reference: Callable[..., PreTrainedModel],
    reference_logits: Callable[[PreTrainedModel, Tensor], Tensor],
    our_logits: Callable[[Decoder, Tensor], Tensor],
    ids_BT: Tensor,
    tmp_path: Path,
) -> None:
    case = CASES[name]
    reference = make_reference(case.family, **case.options)
    reference.save_pretrained(tmp_path / "theirs")
    wanted_BTV = reference_logits(reference, ids_BT)
    assert wanted_BTV.std() > 0.3

    model = load_directory(tmp_path / "theirs")
    got_BTV = our_logits(model, ids_BT)
    assert (got_BTV - wanted_BTV).abs().max() < TOLERANCE

    save_directory(model, None, tmp_path / "ours")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert (reference_logits(back, ids_BT) - wanted_BTV).abs().max() < TOLERANCE
    assert torch.equal(our_logits(load_directory(tmp_path / "ours"), ids_BT), got_BTV)

    if case.without is not None:
        other = Decoder(model.config.model_copy(update=case.without))
        other.load_state_dict(model.state_dict())
        assert (our_logits(other, ids_BT) - wanted_BTV).abs().max() > SHOWS
