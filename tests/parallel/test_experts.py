"""Experts that processes share compute what one process computes with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parallel.layouts import together
from torch import Tensor
from torch.distributed.tensor import DTensor

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.blocks.mixture import Experts
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.mesh import Mesh

SHAPE = {"vocab_size": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 12}
CONFIG = DecoderConfig.model_validate({**SHAPE, "num_kv_heads": 2, "max_positions": 8, "num_experts": 4})
TOKENS = (5, 9)
"""Tokens of each process."""


def mixture(choose: str, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their experts, and the experts' weights."""
    generator = torch.Generator().manual_seed(seed)
    experts_NK = torch.rand(tokens, 4, generator=generator).topk(2).indices
    if choose == "one process's":
        experts_NK = experts_NK.sort().values % 2 + torch.tensor([2, 2])  # the other one has nothing to compute
    return (
        torch.randn(tokens, 8, generator=generator, requires_grad=True),
        experts_NK,
        torch.rand(tokens, 2, generator=generator, requires_grad=True),
    )


def compute(experts: Experts, given: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """What they give, and its gradients by tokens and weights."""
    x_ND, experts_NK, weights_NK = given
    out_ND = experts(x_ND, experts_NK, weights_NK)
    by_out_ND = torch.linspace(-1, 1, out_ND.numel()).view_as(out_ND)
    return [out_ND.detach(), *torch.autograd.grad(out_ND, [x_ND, weights_NK, *experts.parameters()], by_out_ND)]


def experts_of(model: Decoder) -> Experts:
    [mixture] = model.mixtures()
    return mixture.experts


def new_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG)


def compare(world: World, directory: Path) -> None:
    differences: dict[str, float] = {}
    shared, whole = new_decoder(), experts_of(new_decoder())
    Layout(shared, ParallelConfig(expert=2), world)
    gates = experts_of(shared).get_parameter("gate_proj.weight")
    assert isinstance(gates, DTensor)
    assert gates.to_local().shape == (2, 12, 8)
    for choose in ("any", "one process's"):
        each = [compute(whole, mixture(choose, tokens, rank)) for rank, tokens in enumerate(TOKENS)]
        got = compute(experts_of(shared), mixture(choose, TOKENS[world.rank], world.rank))
        expected = each[world.rank][:3]
        of_all = [sum(tensors) for tensors in zip(*(tensors[3:] for tensors in each), strict=True)]
        names = ("out", "tokens", "weights", "gates", "ups", "downs")
        for name, one, other in zip(names, got, [*expected, *of_all], strict=True):
            one = one.full_tensor() if isinstance(one, DTensor) else one
            differences[f"{choose} {name}"] = (one - other).abs().max().item()
    write_json(directory / f"{world.rank}.json", differences)


def test_shared_experts(tmp_path: Path) -> None:
    together(2, compare, tmp_path)
    for rank in range(2):
        for case, difference in read_json(tmp_path / f"{rank}.json").items():
            assert difference < 1e-6, (rank, case)


def test_what_cannot_be_shared() -> None:
    four = World(0, 4)
    with pytest.raises(UsageError, match="expert is 3, which does not divide 4"):
        Mesh(ParallelConfig(expert=3), four)


def refuse(world: World, directory: Path) -> None:
    odd = DecoderConfig.model_validate({**CONFIG.model_dump(), "num_experts": 3})
    plain = DecoderConfig.model_validate({**CONFIG.model_dump(), "num_experts": 0})
    said: list[str] = []
    for config in (odd, plain):
        with pytest.raises(UsageError) as error:
            Layout(Decoder(config), ParallelConfig(expert=2), world)
        said.append(error.value.message)
    write_json(directory / f"{world.rank}.json", {"said": said})


def test_models_whose_experts_cannot_be_shared(tmp_path: Path) -> None:
    together(2, refuse, tmp_path)
    assert read_json(tmp_path / "1.json")["said"] == [
        "loop.parallel.expert is 2, which does not divide 3 experts",
        "loop.parallel.expert is 2, but the model has no experts",
    ]
