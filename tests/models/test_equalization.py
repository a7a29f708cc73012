"""A model whose channels have been made alike is the same function, of which rounding loses less."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.engine.conftest import CONFIGS, make_model, make_tokenizer, tiny
from tests.engine.lora import merged, random_adapter
from torch import Tensor

from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.equalization import (
    TOKENS,
    TOKENS_OF_TEXT,
    EqualizedModel,
    Factors,
    calibration_tokens,
    equalize_adapter,
)
from tallow.models.quantization import dequantize_modules, quantize_modules
from tallow.models.stored import LoadedModel

IDS = torch.arange(3, 63)[None]
BIASED = {"qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True}
MODELS = CONFIGS | {
    "biases": tiny(**BIASED, norm="layer"),
    "norms behind": tiny(norm_placement="post"),
    "norms of all heads": tiny(qk_norm="hidden", tied_embeddings=False),
}


def logits(model: Decoder) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(IDS, SequenceContext.plain(1, IDS.shape[1])))[0]


def with_large_channels(model: Decoder, size: float = 10) -> Decoder:
    """A few channels behind each norm, of values and of what feed-forwards compute are many times the others."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attention_norm.weight", "feed_forward_norm.weight")):
                parameter[3:5] = size
            if name.endswith(("v_proj.weight", "up_proj.weight")):
                parameter[7] *= size
    return model


def equalized(model: Decoder) -> EqualizedModel:
    return EqualizedModel(LoadedModel(copy.deepcopy(model)), calibration_tokens(model.config, None))


def in_4_bits(model: Decoder) -> Decoder:
    return dequantize_modules(quantize_modules(copy.deepcopy(model), 4, 32), torch.float32)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_the_same_function(name: str) -> None:
    model = with_large_channels(make_model(MODELS[name]))
    other = equalized(model)
    changed = other.load()
    torch.testing.assert_close(logits(changed), logits(model), atol=2e-4, rtol=1e-4)
    for layer in range(MODELS[name].num_layers):
        for linear in (f"layers.{layer}.attention.v_proj", f"layers.{layer}.attention.o_proj"):
            assert not torch.allclose(
                changed.get_parameter(f"{linear}.weight"), model.get_parameter(f"{linear}.weight")
            )
    # channels of heads that share values are read as those are written
    config, attention = MODELS[name], "layers.0.attention"
    written_Kd = other.factors[f"{attention}.v_proj"].outputs_O
    read_I = other.factors[f"{attention}.o_proj"].inputs_I
    assert written_Kd is not None
    assert read_I is not None
    by_heads_KGd = read_I.view(config.num_kv_heads, -1, config.head_size)
    assert (by_heads_KGd == written_Kd.view(config.num_kv_heads, 1, -1)).all()
    assert abs(float(read_I.log().mean())) < 1e-5


def test_rounding_loses_less() -> None:
    model = with_large_channels(make_model(tiny(hidden_size=64, intermediate_size=96)))
    exact = logits(model).log_softmax(-1)

    def loss(rounded: Decoder) -> float:
        return float((exact.exp() * (exact - logits(rounded).log_softmax(-1))).sum(-1).mean())

    before, after = loss(in_4_bits(model)), loss(in_4_bits(equalized(model).load()))
    assert after < 0.75 * before


def test_what_cannot_be_told_stays() -> None:
    """Channels that are silent, and activations that are not finite."""
    model = make_model(tiny(num_layers=2))
    with torch.no_grad():
        model.get_parameter("layers.0.attention_norm.weight").zero_()
        model.get_parameter("layers.1.feed_forward_norm.weight")[0] = float("inf")
    factors = equalized(model).factors
    assert (factors["layers.0.attention.q_proj"].inputs_I == 1).all()
    assert (factors["layers.1.feed_forward.up_proj"].inputs_I == 1).all()
    silent = make_model(tiny(num_layers=1))
    with torch.no_grad():
        silent.get_parameter("layers.0.attention_norm.weight")[5] = 0
    factors_I = equalized(silent).factors["layers.0.attention.q_proj"].inputs_I
    assert factors_I is not None
    assert factors_I.argmin() == 5
    assert 0.03 < float(factors_I[5] / factors_I.max()) < 0.04  # the root of a thousandth: it may be heard one day


def test_tokens() -> None:
    config, tokenizer = tiny(max_positions=2048), make_tokenizer()
    with_text, without = calibration_tokens(config, tokenizer), calibration_tokens(config, None)
    assert len(with_text) == len(without) == TOKENS
    assert tokenizer.decode(with_text[:TOKENS_OF_TEXT].tolist()).startswith("The old harbour")
    assert torch.equal(with_text, calibration_tokens(config, tokenizer))
    assert len(calibration_tokens(tiny(max_positions=70), tokenizer)) == 70
    fewer_T = calibration_tokens(tiny(max_positions=2048, vocab_size=110), tokenizer)
    assert len(fewer_T) == TOKENS
    assert fewer_T.max() < 110


def test_adapters_follow() -> None:
    model = with_large_channels(make_model(tiny()))
    adapter, other = random_adapter(model.config, seed=1), equalized(model)
    shared = adapter["layers.1.attention.q_proj"].a_RI
    for each in ("k", "v"):
        name = f"layers.1.attention.{each}_proj"
        adapter[name] = type(adapter[name])(shared, adapter[name].b_OR, adapter[name].scale)
    changed = equalize_adapter(adapter, other.factors)
    torch.testing.assert_close(
        logits(merged(other.load(), changed)), logits(merged(model, adapter)), atol=5e-4, rtol=1e-4
    )
    assert changed["layers.1.attention.q_proj"].a_RI is changed["layers.1.attention.v_proj"].a_RI
    assert equalize_adapter(adapter, {}) == adapter
    nothing = equalize_adapter(adapter, {"layers.0.attention.q_proj": Factors()})
    assert nothing["layers.0.attention.q_proj"] is adapter["layers.0.attention.q_proj"]
