"""Random weights of new models, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tallow.errors import UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.initialization import BaseShape, Mup, Normal
from tallow.models.skeletons import Model, build, learning_rate_factors, new_model

SIZES = {"vocab_size": 64, "hidden_size": 128, "num_layers": 3, "num_heads": 4, "max_positions": 16}
DECODER = DecoderConfig.model_validate({**SIZES, "num_kv_heads": 2, "intermediate_size": 256})
EXPERTS = DECODER.model_copy(update={"num_experts": 4, "intermediate_size": 128})
GEMMA = DecoderConfig.model_validate(
    {**DECODER.model_dump(), "norm_placement": "both", "norm_offset": True, "embedding_scale": True}
)
ENCODER = EncoderConfig.model_validate({**SIZES, "intermediate_size": 256})
CONFIGS = {"decoder": DECODER, "experts": EXPERTS, "gemma": GEMMA, "encoder": ENCODER}


def deviations(model: Model) -> dict[str, float]:
    return {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim > 1}


def logits(model: Model, ids_BT: Tensor) -> Tensor:
    kind = BidirectionalContext if isinstance(model.config, EncoderConfig) else SequenceContext
    with torch.no_grad():
        return model.logits(model(ids_BT, kind.plain(ids_BT.shape[0], ids_BT.shape[1])))


def expected(rule: str, name: str, layers: int) -> float:
    written = name.endswith(("o_proj.weight", "down_proj.weight"))
    if rule == "depth_scaled" and written:
        return 0.02 / (2 * layers) ** 0.5
    if rule == "layer_scaled" and name.startswith("layers."):
        return 0.02 / (int(name.split(".")[1]) + 1) ** 0.5
    return 0.0 if rule == "zero_residual" and written else 0.02


@pytest.mark.parametrize("kind", ["decoder", "experts", "encoder"])
@pytest.mark.parametrize("rule", ["plain", "depth_scaled", "layer_scaled", "zero_residual"])
def test_the_deviation_of_each_matrix(kind: str, rule: Any) -> None:
    model = new_model(CONFIGS[kind], 0, Normal(name=rule))
    for name, deviation in deviations(model).items():
        assert deviation == pytest.approx(expected(rule, name, 3), rel=0.1), name
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("kind", "rule"), [("decoder", "depth_scaled"), ("encoder", "plain")])
def test_what_is_usual(kind: str, rule: Any) -> None:
    usual, named = new_model(CONFIGS[kind], 3), new_model(CONFIGS[kind], 3, Normal(name=rule))
    torch.testing.assert_close(usual.state_dict(), named.state_dict(), rtol=0, atol=0)
    other = new_model(CONFIGS[kind], 4)
    assert not torch.equal(usual.embed.weight, other.embed.weight)


def test_a_larger_deviation() -> None:
    model = new_model(DECODER, 0, Normal(name="plain", deviation=0.1))
    assert all(deviation == pytest.approx(0.1, rel=0.1) for deviation in deviations(model).values())


@pytest.mark.parametrize("kind", ["decoder", "experts", "gemma"])
def test_layers_that_start_at_zero_pass_on_what_they_get_and_learn(kind: str) -> None:
    """Without its layers the model computes the same; and yet the ends of all branches have a gradient."""
    config = CONFIGS[kind]
    assert isinstance(config, DecoderConfig)
    model = new_model(config, 0, Normal(name="zero_residual"))
    bare = build(config.model_copy(update={"num_layers": 1}))
    silent = {name: value for name, value in model.state_dict().items() if name in bare.state_dict()}
    bare.load_state_dict(silent)
    ids_BT = torch.arange(12)[None]
    torch.testing.assert_close(logits(model, ids_BT), logits(bare, ids_BT), rtol=0, atol=0)
    hidden = model(ids_BT, SequenceContext.plain(1, 12))
    model.logits(hidden).logsumexp(-1).sum().backward()
    ends = "post_norm.weight" if kind == "gemma" else ("o_proj.weight", "down_proj.weight")
    gradients = [value.grad for name, value in model.named_parameters() if name.endswith(ends)]
    assert len(gradients) == 6
    for gradient in gradients:
        assert gradient is not None
        assert 0 < gradient.norm() < 100


def mup(**sizes: Any) -> Mup:
    return Mup(name="mup", base=BaseShape(**sizes))


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_at_the_base_shape_nothing_is_scaled(kind: str) -> None:
    rule = mup(hidden_size=128)
    torch.testing.assert_close(
        new_model(CONFIGS[kind], 5, rule).state_dict(), new_model(CONFIGS[kind], 5).state_dict(), rtol=0, atol=0
    )
    assert learning_rate_factors(CONFIGS[kind], rule) == {}


@pytest.mark.parametrize("tied", [True, False])
def test_what_width_does_to_a_decoder(tied: bool) -> None:
    """Table 3 of the paper, at four times the width of the base and twice that of its feed-forward."""
    config = EXPERTS.model_copy(update={"tied_embeddings": tied, "num_kv_heads": 2})
    rule = mup(hidden_size=32, num_kv_heads=1, intermediate_size=64)
    model, usual = new_model(config, 0, rule), new_model(config, 0)
    factors = learning_rate_factors(config, rule)
    scaled = {
        name: model.get_parameter(name).detach().norm() / parameter.detach().norm()
        for name, parameter in usual.named_parameters()
    }
    for part in ("attention.q_proj", "attention.v_proj", "attention.o_proj", "feed_forward.experts.up_proj"):
        assert scaled[f"layers.1.{part}.weight"] == pytest.approx(0.5), part
        assert factors[f"layers.*.{part}.weight"] == 0.25
    assert scaled["layers.0.feed_forward.experts.down_proj.weight"] == pytest.approx(0.5**0.5)
    assert factors["layers.*.feed_forward.experts.down_proj.weight"] == 0.5
    readers = {"layers.*.feed_forward.router.weight", "norm.weight" if tied else "lm_head.weight"}
    for name in readers:
        assert scaled[name.replace("*", "2")] == pytest.approx(0.25), name
        assert factors[name] == 0.25
    assert scaled["embed.weight"] == 1
    assert "embed.weight" not in factors
    assert not any("attention_norm" in name for name in factors)
    assert ("norm.weight" in factors) == tied


def test_what_width_does_to_an_encoder() -> None:
    config, rule = ENCODER, mup(hidden_size=32)
    model, factors = new_model(config, 0, rule), learning_rate_factors(config, rule)
    torch.testing.assert_close(model.get_parameter("head.norm.weight"), torch.full((128,), 0.25))
    assert deviations(model)["head.dense.weight"] == pytest.approx(0.01, rel=0.1)
    named = {name: factor for name, factor in factors.items() if not name.startswith("layers.")}
    assert named == {"head.dense.weight": 0.25, "head.norm.weight": 0.25, "head.norm.bias": 0.25}
    assert {name.split(".", 2)[2] for name in factors if name.startswith("layers.")} == {
        f"{part}_proj.weight"
        for part in (*(f"attention.{letter}" for letter in "qkvo"), "feed_forward.up", "feed_forward.down")
    }


def test_enlarged_embeddings_and_gains_with_an_offset() -> None:
    rule = mup(hidden_size=32, num_kv_heads=1)
    config = GEMMA.model_copy(update={"num_kv_heads": 4})
    model, factors = new_model(config, 0, rule), learning_rate_factors(config, rule)
    assert deviations(model)["embed.weight"] == pytest.approx(0.01, rel=0.1)
    torch.testing.assert_close(model.get_parameter("norm.weight"), torch.full((128,), 0.5 - 1))
    assert (factors["embed.weight"], factors["norm.weight"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 48}, "num_heads 4 of hidden_size 128 does not come out whole at hidden_size 48"),
        ({"hidden_size": 32}, "num_kv_heads 2 .* does not come out whole"),
        ({"hidden_size": 64, "num_heads": 4}, "heads of 32 entries would be heads of 16"),
    ],
)
def test_a_base_shape_that_does_not_fit_is_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        new_model(DECODER, 0, mup(**sizes))
