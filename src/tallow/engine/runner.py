"""What computes a step: tokens of several sequences in, logits out; keys and values stay in the blocks of a cache."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tallow.engine.block_tables import CacheLayout
from tallow.models.config import DecoderConfig
from tallow.models.formats.adapters import Adapter


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one sequence that a step computes.

    Args:
        tokens: They follow each other in the sequence.
        start: Position of the first; what is before it is in the cache.
        wanted: The last so many of them get logits.
        tables: For each table of the cache's layout the blocks of each 16 positions of the sequence, up to the last of
            these tokens.
        adapter: Handle of the adapter that changes the model for this sequence; 0: none.
    """

    tokens: Sequence[int]
    start: int
    wanted: int
    tables: Sequence[array[int]]
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """What a step says of the wanted tokens of its spans, in their order.

    Args:
        logits_RV: fp32; the next step overwrites them.
        likeliest: The token with the greatest logit, for each row.
        greatest: That logit.
        log_sum_exp: Of all logits of the row; NaN if some are not finite.
    """

    logits_RV: Tensor
    likeliest: list[int]
    greatest: list[float]
    log_sum_exp: list[float]


class Runner(Protocol):
    """A model that is ready to compute steps; it owns the memory of the cache.

    Args:
        config: Its architecture.
        layout: How its layers share the blocks of the cache.
        weight_bytes: Memory of its weights, and of the adapters that are loaded.
        precision: What its weights and its cache are held in, in words: what figures of quality belong to.
    """

    config: DecoderConfig
    layout: CacheLayout
    weight_bytes: int
    precision: str

    @property
    def device(self) -> torch.device:
        """Where it computes, and has its cache."""
        ...

    @property
    def block_bytes(self) -> int:
        """Memory of one block of the cache."""
        ...

    def allocate(self, num_blocks: int) -> None:
        """Make the cache so large; what was in it is lost."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values from one block to another."""
        ...

    def run(self, spans: Sequence[Span]) -> Scores:
        """Compute the tokens of all spans."""
        ...

    def load_adapter(self, adapter: Adapter) -> int:
        """Copy an adapter, of linear layers within the decoder's layers, so that spans can name it.

        Returns:
            Its handle, which no other adapter of this runner ever gets.
        """
        ...

    def unload_adapter(self, handle: int) -> None:
        """Free an adapter's memory; no span may name it any more."""
        ...


def context_length(config: DecoderConfig) -> int:
    """Longest sequence in tokens, prompt and answer together.

    LongRoPE has other frequencies beyond the trained length than within it, and the keys in the cache would be of the
    wrong ones once a sequence grows past it; there the trained length is the limit.
    """
    scaling = config.rotary.scaling
    if config.positions == "rotary" and scaling is not None and scaling.kind == "longrope":
        return min(config.max_positions, scaling.original_max_positions or config.max_positions)
    return config.max_positions
