"""How much layers keep for the backward pass, and how many must compute it again."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from tallow.console import say
from tallow.data.batch import Packed
from tallow.kernels.memory import free_bytes
from tallow.parallel import Layout
from tallow.parallel.recompute import LayerMemory, layers_to_recompute, measuring
from tallow.parallel.shares import own_share
from tallow.train.config import LoopConfig

GRADIENT_BYTES, HALF_BYTES = 4, 2
"""Of each weight, its copy in half the bits among them."""
KEPT_SHARE = 0.85
"""Of the memory that is left layers may keep so much; the rest is for logits and what is there for a moment only."""


def fit_recomputation(layout: Layout, rehearse: Callable[[Packed], object], packed: Packed, config: LoopConfig) -> None:
    """Let layers recompute as the settings say: all of them, or as many as the budget asks for.

    Args:
        rehearse: The forward and backward pass of a micro-batch, without effect.
        packed: One of the run's.
    """
    if config.activation_mb is None:
        layout.recompute(config.recompute)
        return
    layers, rows = layout.layers, len(packed.tokens_BT)
    memories: list[LayerMemory] = []
    for number in (1, 2):
        with measuring(layers[0], config.recompute) as memory:
            rehearse(packed.first_rows(number))
        memories.append(memory)
    # what does not grow with the rows, such as weights in another precision, is kept in any case
    layer_bytes = (memories[1].kept - memories[0].kept) * rows
    remembered = (memories[1].remembered - memories[0].remembered) * rows
    budget = spare_bytes(layout, config) if config.activation_mb == "auto" else config.activation_mb * 1e6
    count = layers_to_recompute(len(layers), layer_bytes, layer_bytes - remembered, budget)
    # what processes that share a layer send each other in it, all of them must send again
    count = int(layout.world.max(count)[0])
    layout.recompute(config.recompute, count)
    say(f"{count} of {len(layers)} layers compute again what they need for the backward pass")


def spare_bytes(layout: Layout, config: LoopConfig) -> float:
    """Memory that this process's device has for what layers keep, once gradients, and optimizer state if it is to be
    there, have come; not more than 0 where it has none."""
    device = layout.device
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept_by_torch
    else:
        free = free_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    weights = sum(own_share(parameter).numel() for parameter in layout.parameters.values())
    state_bytes = config.optimizer.state_bytes if config.offload.state_is_with(device) else 0
    to_come = weights * (GRADIENT_BYTES + HALF_BYTES + state_bytes)
    return KEPT_SHARE * (free - to_come)
