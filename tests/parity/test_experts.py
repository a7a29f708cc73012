"""Routers against `transformers`, and the files in which it fuses the weights of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.formats.hub import HubModel, load_directory, save_directory

FAMILIES = ["mixtral", "olmoe", "minimax_m2"]
TOLERANCE = 5e-5
Make = Callable[..., PreTrainedModel]


def make(make_reference: Make, family: str) -> PreTrainedModel:
    return make_reference(family, num_local_experts=5, num_experts_per_tok=2, head_dim=8)


def router_logits(model: Decoder, ids_BT: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []

    def see(_module: nn.Module, _inputs: object, logits_NE: Tensor) -> None:
        seen.append(logits_NE)

    for mixture in model.mixtures():
        mixture.router.register_forward_hook(see)
    with torch.inference_mode():
        model(ids_BT, SequenceContext.plain(len(ids_BT), ids_BT.shape[1]))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_router_logits(make_reference: Make, family: str, ids_BT: Tensor, tmp_path: Path) -> None:
    reference = make(make_reference, family)
    reference.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = reference(input_ids=ids_BT, output_router_logits=True).router_logits
    got = router_logits(load_directory(tmp_path), ids_BT)
    assert len(got) == len(expected) == 3
    for ours_NE, theirs_NE in zip(got, expected, strict=True):
        assert theirs_NE.std() > 0.3
        assert (ours_NE - theirs_NE).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_files(make_reference: Make, family: str, tmp_path: Path) -> None:
    """The same weights, however they are stored; they are written as the hub has them."""
    reference = make(make_reference, family)
    reference.save_pretrained(tmp_path / "usual")
    reference.save_pretrained(tmp_path / "fused", save_original_format=False)
    usual, fused = (load_file(tmp_path / name / "model.safetensors") for name in ("usual", "fused"))
    assert len(usual) > len(fused)
    model = load_directory(tmp_path / "fused")
    expected = load_directory(tmp_path / "usual").state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    source = HubModel(tmp_path / "fused")
    torch.testing.assert_close({name: source.read(name) for name in expected}, expected, rtol=0, atol=0)
    save_directory(model, None, tmp_path / "ours")
    torch.testing.assert_close(load_file(tmp_path / "ours" / "model.safetensors"), usual, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_weight_at_a_time(make_reference: Make, family: str, tmp_path: Path) -> None:
    make(make_reference, family).save_pretrained(tmp_path)
    source = HubModel(tmp_path)
    expected = load_directory(tmp_path).state_dict()
    torch.testing.assert_close({name: source.read(name) for name in expected}, expected, rtol=0, atol=0)
