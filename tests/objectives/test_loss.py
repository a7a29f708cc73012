from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives import Example, loss
from tallow.objectives.loss import summed_loss

VOCABULARY = 31


@pytest.fixture(params=["tied", "untied", "softcap"])
def model(request: pytest.FixtureRequest) -> Decoder:
    choices = {"tied": {}, "untied": {"tied_embeddings": False}, "softcap": {"logit_softcap": 5.0}}[request.param]
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 32}
    model = Decoder(DecoderConfig.model_validate({"vocab_size": VOCABULARY, **shape, **choices}))
    initialize(model, seed=0)
    return model


@pytest.fixture
def example() -> Example:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (3, 21), generator=generator)
    mask = torch.rand(3, 20, generator=generator) < 0.6
    return Example(tokens[:, :-1], tokens[:, 1:], mask, SequenceContext.plain(3, 20))


def backpropagate(model: Decoder, example: Example) -> torch.Tensor:
    loss = summed_loss(model, example)
    loss.backward()
    return loss.detach()


def plain_loss(model: Decoder, example: Example) -> torch.Tensor:
    logits = model.logits(model(example.inputs_BT, example.context))
    return F.cross_entropy(logits[example.loss_mask_BT], example.targets_BT[example.loss_mask_BT], reduction="sum")


@pytest.mark.parametrize("piece", [1, 7, 512])
def test_pieces_equal_the_whole(model: Decoder, example: Example, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_TOKENS", piece)
    expected = plain_loss(model, example)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    torch.testing.assert_close(backpropagate(model, example), expected.double(), atol=0, rtol=1e-6, check_dtype=False)
    torch.testing.assert_close(summed_loss(model, example), expected.double(), atol=0, rtol=1e-6, check_dtype=False)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-5)


def test_gradients_add_up(model: Decoder, example: Example) -> None:
    backpropagate(model, example)
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    backpropagate(model, example)
    twice = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(twice, [2 * gradient for gradient in once], atol=1e-6, rtol=1e-6)


def test_bfloat16_keeps_the_direction(model: Decoder, example: Example) -> None:
    backpropagate(model, example)
    exact = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backpropagate(model, example)
    rounded = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.999


def test_nothing_to_learn_is_no_loss_and_no_gradient(model: Decoder, example: Example) -> None:
    nothing = Example(example.inputs_BT, example.targets_BT, torch.zeros_like(example.loss_mask_BT), example.context)
    assert backpropagate(model, nothing) == 0
    assert summed_loss(model, nothing) == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_output_matrix_alone_can_be_trained(example: Example) -> None:
    model = Decoder(DecoderConfig(vocab_size=VOCABULARY, hidden_size=16, num_layers=1, tied_embeddings=False))
    assert model.lm_head is not None
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    backpropagate(model, example)
    assert model.lm_head.weight.grad is not None
    assert model.embed.weight.grad is None
