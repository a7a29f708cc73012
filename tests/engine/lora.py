"""Random adapters, and models that have them merged in."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import Adapter, LowRank

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    config: DecoderConfig, seed: int, rank: int = 3, targets: Sequence[str] = LINEAR_NAMES
) -> dict[str, LowRank]:
    """Updates half as large as the random weights that they change; experts have none."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name.removesuffix(".weight"): tensor.shape for name, tensor in Decoder(config).named_parameters()}
    return {
        name: LowRank(
            torch.randn(rank, shape[1], generator=generator) * shape[1] ** -0.5,
            torch.randn(shape[0], rank, generator=generator),
            0.5 * rank**-0.5,
        )
        for name, shape in shapes.items()
        if name.startswith("layers.") and len(shape) == 2 and name.endswith(tuple(targets))
    }


def merged(model: Decoder, adapter: Adapter) -> Decoder:
    """The model with the adapter's updates within its weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, update in adapter.items():
            model.get_parameter(f"{name}.weight").add_(update.scale * update.b_OR @ update.a_RI)
    return model
