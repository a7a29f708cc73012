"""Low-rank adapters (LoRA, arXiv 2106.09685; rank-stabilized scaling: 2312.03732) by module replacement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.recipe import Section

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Section):
    """Settings of the adapters.

    Args:
        rank: Inner size of the update.
        alpha: The update is scaled by `alpha / rank`, or `alpha / sqrt(rank)` when rank-stabilized.
        dropout: Share of the adapter's inputs dropped in training.
        targets: Names of the linear layers that get one; all of a decoder layer by default.
        rank_stabilized: The scaling of rsLoRA, which stays sound at high ranks.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...] = (
        LINEAR_NAMES
    )
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank update: `base(x) + scale · B A x`.

    A (R I) starts random and B (O R) at zero, so that the adapted layer starts as the base.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        update = (self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.T) @ self.lora_B.T
        return self.base(x) + (self.scale * update).to(x.dtype)

    def delta(self) -> Tensor:
        """The update as one matrix, O I."""
        return self.scale * (self.lora_B @ self.lora_A)


def add_adapters(model: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze the model and give an adapter to each target layer.

    Raises:
        UsageError: The model has no full-precision linear layer of a target's name.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    missing = set(config.targets)
    for parent, name, module in list(_linear_layers(model)):
        if name in config.targets:
            missing.discard(name)
            adapter = LoraLinear(module, config.rank, config.scale, config.dropout)
            nn.init.kaiming_uniform_(adapter.lora_A, a=math.sqrt(5), generator=generator)
            setattr(parent, name, adapter)
    # a plain feed-forward has no gate, and experts are no linear layers; the default targets name them all the same
    missing -= {"gate_proj", "up_proj", "down_proj"} if model.config.num_experts else {"gate_proj"}
    if missing:
        raise UsageError(f"the model has no layer named {sorted(missing)[0]}", f"known: {', '.join(LINEAR_NAMES)}")


def adapters(model: Decoder) -> Iterator[tuple[str, LoraLinear]]:
    """Each adapter with the name of the layer that it stands in for, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merge_adapters(model: Decoder) -> None:
    """Add every update into its layer's weight (in fp32, then rounded) and take the adapters out."""
    for name, adapter in list(adapters(model)):
        weight = adapter.base.weight
        with torch.no_grad():
            merged = (weight.float() + adapter.delta().float()).to(weight.dtype)
        adapter.base.weight = nn.Parameter(merged)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapter.base)
    model.requires_grad_(True)


def _linear_layers(model: Decoder) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.layers.modules():
        for name, module in parent.named_children():
            if name in LINEAR_NAMES and isinstance(module, nn.Linear):
                yield parent, name, module
