"""How much layers keep for the backward pass, and how many must compute it again."""

from __future__ import annotations

from collections.abc import Callable

from tallow.console import say
from tallow.data.batch import Packed
from tallow.parallel import Layout
from tallow.parallel.recompute import LayerMemory, layers_to_recompute, measuring
from tallow.train.config import LoopConfig


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
    budget = config.activation_mb * 1e6
    count = layers_to_recompute(len(layers), layer_bytes, layer_bytes - remembered, budget)
    layout.recompute(config.recompute, count)
    say(f"{count} of {len(layers)} layers compute again what they need for the backward pass")
