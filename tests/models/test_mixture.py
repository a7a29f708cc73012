"""The mixture of experts is its definition, token by token, and its balancing what the papers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.models.tiny import CONFIG
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks.balance import relative_loads
from tallow.models.blocks.context import SequenceContext
from tallow.models.blocks.mixture import Mixture
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats.hub import load_directory, save_directory

MINIMAX = {"family": "minimax_m2", "qk_norm": "hidden", "router_scores": "sigmoid", "router_balance": "bias"}


def config(**choices: Any) -> DecoderConfig:
    return CONFIG.model_copy(update={"num_experts": 5, "experts_per_token": 2, **choices})


def make_mixture(**choices: Any) -> Mixture:
    """In training, with weights so large that experts differ."""
    torch.manual_seed(0)
    mixture = Mixture(config(**choices))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return mixture


def inputs(rows: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, length, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))


def plainly(mixture: Mixture, x_BTD: Tensor) -> Tensor:
    """One token and one expert at a time."""
    out_BTD = torch.zeros_like(x_BTD)
    experts, bias_E = mixture.experts, mixture.router.bias
    for place in torch.cartesian_prod(*map(torch.arange, x_BTD.shape[:2])).tolist():
        x_D = x_BTD[*place]
        logits_E = mixture.router.weight @ x_D
        scores_E = logits_E.sigmoid() if mixture.scores == "sigmoid" else logits_E.softmax(0)
        ranked_E = scores_E if bias_E is None else scores_E + bias_E
        chosen = ranked_E.argsort(descending=True)[: mixture.experts_per_token].tolist()
        total = sum(scores_E[expert] for expert in chosen) if mixture.normalize_weights else 1.0
        for expert in chosen:
            gate, up, down = (stack.weight[expert] for stack in (experts.gate_proj, experts.up_proj, experts.down_proj))
            out_BTD[*place] += scores_E[expert] / total * (down @ (F.silu(gate @ x_D) * (up @ x_D)))
    return out_BTD


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"experts_per_token": 1, "normalize_expert_weights": False},
        {"experts_per_token": 5},
        {"num_experts": 40},  # more than are chosen
        {"router_scores": "sigmoid", "router_balance": "bias"},
    ],
    ids=str,
)
def test_it_is_its_definition(choices: dict[str, Any]) -> None:
    mixture, x_BTD = make_mixture(**choices).eval(), inputs()
    gradients = []
    for compute in (lambda: mixture(x_BTD, SequenceContext.plain(2, 7)), lambda: plainly(mixture, x_BTD)):
        mixture.zero_grad()
        out_BTD = compute()
        (out_BTD * inputs(seed=1)).sum().backward()
        gradients.append([out_BTD.detach(), *(parameter.grad for parameter in mixture.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_the_router_computes_in_fp32() -> None:
    """Also where the rest is rounded to bf16."""
    mixture, x_BTD = make_mixture(), inputs()
    logits_NE = mixture.router(x_BTD.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixture.router(x_BTD.flatten(0, 1)), logits_NE)
        assert mixture(x_BTD, SequenceContext.plain(2, 7)).dtype == torch.float32
    mixture.bfloat16()
    assert mixture.router(x_BTD.bfloat16().flatten(0, 1)).dtype == torch.float32
    assert mixture(x_BTD.bfloat16(), SequenceContext.plain(2, 7)).dtype == torch.bfloat16


def test_parameters_of_a_token() -> None:
    model = Decoder(config())
    expert = 3 * CONFIG.intermediate_size * CONFIG.hidden_size
    assert model.num_parameters() - model.num_active_parameters() == CONFIG.num_layers * 3 * expert
    assert Decoder(CONFIG).num_active_parameters() == Decoder(CONFIG).num_parameters()


@pytest.mark.parametrize(
    ("choices", "problem"),
    [({"experts_per_token": 6}, "more than num_experts"), ({"gated": False}, "gated"), ({"num_experts": -1}, "equal")],
)
def test_what_cannot_be(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DecoderConfig.model_validate({"num_experts": 5, **choices})


# ---- the auxiliary loss


def explicit_loss(mixture: Mixture, sequences: list[Tensor]) -> Tensor:
    """The loss of each sequence, written out, times its length and the weight."""
    total = torch.zeros(())
    for x_TD in sequences:
        logits_TE = mixture.router(x_TD)
        scores_TE = logits_TE.softmax(-1) if mixture.scores == "softmax" else logits_TE.sigmoid()
        shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        experts_TK = mixture.router.choose(scores_TE)
        chosen_TE = F.one_hot(experts_TK, mixture.num_experts).sum(1).float()
        f_E = chosen_TE.mean(0) * mixture.num_experts / mixture.experts_per_token
        total = total + len(x_TD) * (f_E * shares_TE.mean(0)).sum()
    return mixture.balance_weight * total


def router_gradient(mixture: Mixture, x_BTD: Tensor, context: SequenceContext) -> Tensor:
    """What training adds to the router's gradient."""
    gradients = []
    for training in (True, False):
        mixture.zero_grad()
        mixture.train(training)(x_BTD, context).sum().backward()
        assert mixture.router.weight.grad is not None
        gradients.append(mixture.router.weight.grad.clone())
    return gradients[0] - gradients[1]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_its_gradient_is_that_of_the_explicit_loss(scores: str, normalize: bool) -> None:
    mixture = make_mixture(router_scores=scores, normalize_expert_weights=normalize, router_balance_weight=0.5)
    x_BTD = inputs()
    [expected] = torch.autograd.grad(explicit_loss(mixture, list(x_BTD)), mixture.router.weight)
    assert expected.abs().max() > 0.05
    got = router_gradient(mixture, x_BTD, SequenceContext.plain(2, 7))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_packing_and_padding_change_nothing() -> None:
    mixture, sequences = make_mixture(router_balance_weight=0.5), [inputs(1, length, length)[0] for length in (6, 3, 5)]
    [expected] = torch.autograd.grad(explicit_loss(mixture, sequences), mixture.router.weight)
    packed_BTD = torch.stack([torch.cat([*sequences[:2]]), torch.cat([sequences[2], inputs(1, 4, 9)[0]])])
    positions_BT = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    padding_BT = torch.zeros(2, 9, dtype=torch.bool)
    padding_BT[1, 5:] = True
    context = SequenceContext(positions_BT, padding_BT=padding_BT)
    mixture.take_loads()
    got = router_gradient(mixture, packed_BTD, context)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert mixture.take_loads().sum() == 14 * 2  # in training alone
    assert mixture.take_loads().tolist() == [0] * 5


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=4))
def test_relative_loads(sequences: list[list[int]]) -> None:
    """Of sequences one after the other, each token with one expert of four."""
    positions = [place for sequence in sequences for place in range(len(sequence))]
    experts_NK = torch.tensor([[expert] for sequence in sequences for expert in sequence])
    got_NE = relative_loads(experts_NK, SequenceContext(torch.tensor([positions])), 4)
    expected = [[4 * sequence.count(e) / len(sequence) for e in range(4)] for sequence in sequences for _ in sequence]
    torch.testing.assert_close(got_NE, torch.tensor(expected))


# ---- the bias


def test_the_bias_moves_against_the_load() -> None:
    mixture = make_mixture(num_experts=4, router_balance="bias", router_balance_weight=0.125)
    bias_E = mixture.router.bias
    assert bias_E is not None
    assert not bias_E.requires_grad
    before_E = bias_E.clone()
    mixture.move_bias(torch.tensor([1, 4, 7, 4]))
    assert torch.equal(bias_E - before_E, torch.tensor([0.125, 0.0, -0.125, 0.0]))
    x_BTD, context = inputs(), SequenceContext.plain(2, 7)
    with torch.no_grad():
        bias_E[:] = torch.tensor([0.0, 9.0, 0.0, 9.0])
    mixture.take_loads()
    mixture(x_BTD, context)
    assert mixture.take_loads().tolist() == [0, 14, 0, 14]
    make_mixture().move_bias(torch.ones(5))  # without biases nothing moves


def test_a_stored_bias_is_read_and_moves_on(tmp_path: Path) -> None:
    model = Decoder(config(**MINIMAX, num_experts=3))
    initialize(model, seed=0)
    for mixture in model.mixtures():
        mixture.move_bias(torch.tensor([3, 0, 0]))
    save_directory(model, None, tmp_path)
    again = load_directory(tmp_path).train()
    assert again.config.balance_weight == 0.001
    ids_BT = torch.arange(20)[None]
    again(ids_BT, SequenceContext.plain(1, 20))
    for mixture in again.mixtures():
        bias_E = mixture.router.bias
        assert bias_E is not None
        assert not bias_E.requires_grad
        torch.testing.assert_close(bias_E, torch.tensor([-0.001, 0.001, 0.001]))
        assert mixture.take_loads().sum() == 20 * 2
