"""Packed weights compute what the plain ones do, and never outlive them."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.engine.conftest import make_model, tiny
from torch import Tensor

from tallow.engine.engine import Engine
from tallow.engine.packing import PackedEmbedding, PackedLinear, pack_weights
from tallow.models.blocks.context import SequenceContext
from tallow.models.blocks.linear import Linear
from tallow.models.decoder import Decoder, Embedding

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
IDS_BT = torch.arange(20).reshape(2, 10)


def logits(model: Decoder) -> Tensor:
    return model.logits(model(IDS_BT, SequenceContext.plain(2, 10)))


def bf16_model(tied: bool = True) -> Decoder:
    return make_model(tiny(tied_embeddings=tied, qkv_bias=True)).bfloat16()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_same_logits(tied: bool) -> None:
    model = bf16_model(tied)
    expected_BTV, names = logits(model), list(model.state_dict())
    pack_weights(model)
    assert list(model.state_dict()) == names
    assert not [module for module in model.modules() if type(module) is Linear]
    assert isinstance(model.embed, PackedEmbedding if tied else Embedding)
    # the order of summation is oneDNN's own, and each product is rounded to bf16
    torch.testing.assert_close(logits(model), expected_BTV, atol=0.1, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(logits(model), expected_BTV, atol=0.1, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 200])
@torch.no_grad()
def test_any_number_of_rows(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = Linear(96, 160)
    plain.load_state_dict({name: torch.randn(p.shape, generator=generator) for name, p in plain.named_parameters()})
    plain = plain.bfloat16()
    x_1TI = torch.randn(1, rows, 96, generator=generator).bfloat16()
    expected = torch.nn.functional.linear(x_1TI.double(), plain.weight.double(), plain.bias.double())
    out = PackedLinear(plain)(x_1TI)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, atol=1e-2, rtol=2**-7)


def test_a_changed_weight_is_not_taken_for_the_packed_one() -> None:
    model = pack_weights(bf16_model())
    with torch.no_grad():
        before_BTV = logits(model)
        model.get_parameter("layers.0.feed_forward.down_proj.weight").mul_(-1)
        changed_BTV = logits(model)
        model.embed.weight.mul_(2)
        scaled_BTV = logits(model)
        model.float()
        assert logits(model).dtype == torch.float32
    assert (changed_BTV - before_BTV).abs().max() > 0.5
    assert (scaled_BTV - changed_BTV).abs().max() > 0.5


def test_gradients_flow() -> None:
    model = pack_weights(bf16_model())
    logits(model).float().pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_copies_are_whole_and_go_their_own_way() -> None:
    model = pack_weights(bf16_model())
    twin = copy.deepcopy(model)
    torch.testing.assert_close(logits(twin), logits(model), atol=0.1, rtol=0)
    twin.embed.weight.zero_()
    assert logits(twin).abs().max() == 0
    assert logits(model).abs().max() > 0


@torch.no_grad()
def test_other_precisions_stay_plain() -> None:
    model = make_model(tiny())
    assert pack_weights(model) is model
    assert not [module for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding)]


def test_the_engine_runs_on_packed_weights() -> None:
    plain, packed = bf16_model(), pack_weights(bf16_model())
    ids = list(range(30))
    torch.testing.assert_close(
        Engine(packed, None).log_probs(ids), Engine(plain, None).log_probs(ids), atol=0.1, rtol=0
    )
