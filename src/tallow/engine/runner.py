"""What computes a step: tokens of several sequences in, logits out; keys and values stay in the blocks of a cache."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tallow.engine.block_tables import CacheLayout
from tallow.kernels.sampling import Draw
from tallow.models.config import DecoderConfig

if TYPE_CHECKING:
    from tallow.models.equalization import Factors
    from tallow.models.formats.adapters import Adapter

Floats = npt.NDArray[np.float32]


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
        fetch: Brings all their logits into this machine's memory, if they are not there: R V, fp32.
        tokens: For each row the token with the greatest logit, or the one that was drawn.
        logits: Their logits.
        log_sum_exp: Of all logits of the row; NaN if some are not finite.
        hidden: The final hidden state of a row, after the last norm: D, fp32; until the next pass.
        are_drawn: Whether the tokens are those of `run_ahead`'s draws.
    """

    fetch: Callable[[], Floats]
    tokens: list[int]
    logits: list[float]
    log_sum_exp: list[float]
    hidden: Callable[[int], Floats]
    are_drawn: bool = False

    @property
    def logits_RV(self) -> Floats:
        """All logits, R V; the next pass overwrites them."""
        return self.fetch()


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
    def device(self) -> Literal["cpu", "cuda"]:
        """Where it computes, and has its cache."""
        ...

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Of linear layers whose channels have been made alike: what adapters have to follow (`equalize_adapter`)."""
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

    def run_ahead(
        self, spans: Sequence[Span], draws: Sequence[Draw], stop_ids: Sequence[Sequence[int]], passes: int
    ) -> list[Scores]:
        """Compute the tokens of all spans, and then some more, each drawn from the logits of the one before it.

        Args:
            spans: One row is wanted of each; there are blocks for `passes` − 1 more tokens.
            draws: How the first token after each span is drawn; the index of a later one is greater by its pass.
            stop_ids: For each span the tokens after which nothing more is wanted of it.
            passes: How many there may be. If there is but one, the tokens need not be drawn.

        Returns:
            The scores of each pass, up to the one after which each span has had one of its stop ids; only the logits of
            the last are still there.
        """
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
