"""The runner for a GPU: the model's own module with kernels in Triton, small steps recorded as CUDA graphs.

A small step has hundreds of short kernels, and starting them one by one takes longer than they do. A graph starts them
all at once, but always the same ones on the same addresses: so a step's tokens are filled up to one of a few numbers,
and what differs from step to step lies in buffers that stay.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tallow.console import say
from tallow.engine.block_tables import CacheLayout
from tallow.engine.blocks import BLOCK_TOKENS
from tallow.engine.runner import Scores, Span, context_length
from tallow.engine.torch_runner import TorchRunner, make_scores, summarize, wanted_rows
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.paged_attention import QueryTiles, paged_attention
from tallow.kernels.triton.paged_attention import tile_size
from tallow.models.blocks.context import AttentionSpec, Context
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder

GRAPH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Tokens of the steps that are recorded; larger ones keep the GPU busy while the next kernels are started."""

Work = Callable[[], None]


class GraphRecorder:
    """Turns work on a GPU into a graph; all graphs share their memory, so only one may run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._has_spoken = False

    def __call__(self, work: Work) -> Work:
        """What does the same work again, on the same tensors."""
        if not self._has_spoken:
            say("the first step of each size takes longer: its kernels are compiled and recorded")
            self._has_spoken = True
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()  # kernels are compiled and libraries take their memory, which nothing may do while recording
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CudaRunner(TorchRunner):
    """Computes what `TorchRunner` does, sooner.

    Every token of a small step is a tile of attention by itself, whether it is decoded, guessed, or of a short prompt:
    keys are written before any are read, so each sees what it should.

    Args:
        model: In evaluation mode, on the device where it is to run.
        record: Makes work repeatable; None: as a CUDA graph.
    """

    def __init__(self, model: Decoder, record: Callable[[Work], Work] | None = None) -> None:
        super().__init__(model)
        config = model.config
        head_bytes = config.head_size * self._dtype.itemsize
        self._tile_size = tile_size(config.num_heads // config.num_kv_heads, head_bytes)
        self._record = GraphRecorder() if record is None else record
        self._can_record = not _reads_positions(config)
        self._recorded: dict[int, Work] = {}
        self._hidden_TD: dict[int, Tensor] = {}  # by size: where its graph leaves them

    def allocate(self, num_blocks: int) -> None:
        self._recorded.clear()
        self._hidden_TD.clear()
        # one block more, for the keys and values of the tokens that fill up a step
        super().allocate(num_blocks + 1)
        tables = len(self.layout.windows)
        self._filler = Span([0], 0, 0, [array("i", [num_blocks])] * tables)
        most, longest = GRAPH_TOKENS[-1], -(-context_length(self.config) // BLOCK_TOKENS)
        with torch.inference_mode():
            self._inputs = torch.zeros(most * (5 + tables * (2 + longest)), dtype=torch.int32, device=self._device)
            self._logits_TV = torch.zeros(most, self.config.vocab_size, device=self._device)
            self._summary_3T = torch.zeros(3, most, dtype=torch.float64, device=self._device)

    def run(self, spans: Sequence[Span]) -> Scores:
        count = sum(len(span.tokens) for span in spans)
        # adapters change the model from outside, which a graph would not see
        adapted = any(span.adapter for span in spans)
        if adapted or count > GRAPH_TOKENS[-1] or not self._can_record or not prefers_fast():
            return super().run(spans)
        size = GRAPH_TOKENS[bisect_left(GRAPH_TOKENS, count)]
        packed, _ = pack([*spans, *[self._filler] * (size - count)], len(self.layout.windows), tile_size=1)
        with torch.inference_mode():
            self._inputs[: len(packed)].copy_(packed)
            if size not in self._recorded:
                self._recorded[size] = self._record(lambda: self._compute(size))
            self._recorded[size]()
            rows = wanted_rows(spans)
            # a slice where that will do: most steps want every row
            chosen = slice(count) if len(rows) == count else rows
            hidden_TD = self._hidden_TD[size]
            return make_scores(self._logits_TV[chosen], self._summary_3T[:, chosen], lambda row: hidden_TD[rows[row]])

    def _compute(self, size: int) -> None:
        """From the buffer of inputs to those of logits and what they come to."""
        context = TiledContext(self._inputs, size, size, 1, self.layout, self._caches)
        hidden_1TD = self.model(context.tokens_BT, context)
        self._hidden_TD[size] = hidden_1TD[0]
        logits_TV = self._logits_TV[:size]
        logits_TV.copy_(self.model.logits(hidden_1TD)[0])
        self._summary_3T[:, :size].copy_(summarize(logits_TV))

    def _context(self, spans: Sequence[Span]) -> TiledContext:
        packed, num_tiles = pack(spans, len(self.layout.windows), self._tile_size)
        count = sum(len(span.tokens) for span in spans)
        return TiledContext(packed.to(self._device), count, num_tiles, self._tile_size, self.layout, self._caches)


class TiledContext(Context):
    """Causal attention of the spans of a step, laid one after the other in a single row (B = 1), by one kernel.

    Args:
        packed: What `pack` made of the spans; it may be longer.
        num_tokens: How many tokens they have.
        num_tiles: Into how many tiles they were cut.
        tile_size: Most tokens of a tile.
        layout: How the layers share the blocks of the cache.
        caches: Keys and values of each layer of a block.
    """

    padding_BT: Tensor | None = None

    def __init__(
        self,
        packed: Tensor,
        num_tokens: int,
        num_tiles: int,
        tile_size: int,
        layout: CacheLayout,
        caches: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self._layout, self._caches = layout, caches
        tables = len(layout.windows)
        by_token, by_tile = (2 + tables) * num_tokens, (3 + tables) * num_tiles
        self.tokens_BT, self.positions_BT, *places = packed[:by_token].long().view(2 + tables, 1, num_tokens)
        self._places = [places_1T[0] for places_1T in places]
        rows, positions, counts, *begins = packed[by_token : by_token + by_tile].view(3 + tables, num_tiles)
        blocks = packed[by_token + by_tile :]
        self._tiles = [
            QueryTiles(rows, positions, counts, begins_N, blocks, tile_size, BLOCK_TOKENS) for begins_N in begins
        ]

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        table, place = self._layout.places[spec.layer]
        keys, values = self._caches[place]
        for cache, new_BKTd in ((keys, k_BKTd), (values, v_BKTd)):
            cache.index_copy_(0, self._places[table], new_BKTd[0].transpose(0, 1))
        q_THd, tiles = q_BHTd[0].transpose(0, 1), self._tiles[table]
        return paged_attention(q_THd, keys, values, tiles, spec.scale, spec.window, spec.softcap).transpose(0, 1)[None]


def pack(spans: Sequence[Span], num_tables: int, tile_size: int) -> tuple[Tensor, int]:
    """What spans say as one vector (int32), so that one copy brings it to a GPU; also the number of tiles.

    For each token: its id, its position, and for each table its place in the cache. For each tile: its first row, that
    token's position, the number of its tokens, and for each table where the sequence's blocks begin. Then the blocks.
    """
    tokens, positions, rows, firsts, counts, blocks = (array("i") for _ in range(6))
    places, begins = ([array("i") for _ in range(num_tables)] for _ in range(2))
    for span in spans:
        length, end = len(span.tokens), span.start + len(span.tokens)
        offsets = range(0, length, tile_size)
        rows.extend(len(tokens) + offset for offset in offsets)
        firsts.extend(span.start + offset for offset in offsets)
        counts.extend(min(tile_size, length - offset) for offset in offsets)
        for table, places_T, begins_N in zip(span.tables, places, begins, strict=True):
            places_T.extend(
                table[place // BLOCK_TOKENS] * BLOCK_TOKENS + place % BLOCK_TOKENS for place in range(span.start, end)
            )
            begins_N.extend([len(blocks)] * len(offsets))
            blocks.extend(table[: -(-end // BLOCK_TOKENS)])
        tokens.extend(span.tokens)
        positions.extend(range(span.start, end))
    packed = array("i")
    for part in (tokens, positions, *places, rows, firsts, counts, *begins, blocks):
        packed.extend(part)
    return torch.frombuffer(packed, dtype=torch.int32), len(rows)


def _reads_positions(config: DecoderConfig) -> bool:
    """Whether the model's angles depend on the longest sequence of a step, for which the GPU must be waited for."""
    kinds = [rotary for rotary in (config.rotary, config.local_rotary) if rotary is not None]
    return config.positions == "rotary" and any(
        rotary.scaling is not None and rotary.scaling.depends_on_length for rotary in kinds
    )
