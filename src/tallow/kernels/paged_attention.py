"""Attention of queries with keys and values that lie in the blocks of a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.kernels import triton
from tallow.kernels.dispatch import Operation


@dataclass(frozen=True, eq=False)
class QueryTiles:
    """Queries of several sequences, laid one after the other and cut into tiles, each of one sequence.

    Args:
        rows_N: Row of each tile's first query; int32, as the others.
        positions_N: The position of that query in its sequence.
        counts_N: How many queries the tile has; they follow each other.
        begins_N: Where the sequence's table begins among `blocks`.
        blocks: The tables of all sequences, one after the other: the cache block of each `block_tokens` positions up to
            the sequence's last query. Those outside the window of all its queries may be anything.
        size: Most queries of a tile.
        block_tokens: Positions of a block.
    """

    rows_N: Tensor
    positions_N: Tensor
    counts_N: Tensor
    begins_N: Tensor
    blocks: Tensor
    size: int
    block_tokens: int


@Operation
def paged_attention(
    q_THd: Tensor,
    keys_SKd: Tensor,
    values_SKd: Tensor,
    tiles: QueryTiles,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal softmax attention with grouped keys and values; each query sees its own position and those before it.

    Args:
        q_THd: The queries of all tiles.
        keys_SKd: The cache: position p of a sequence is row `block · block_tokens + p % block_tokens`, where `block` is
            what its table has for p. K divides H.
        values_SKd: Likewise.
        tiles: Which queries belong to which sequence; together all T, each once.
        scale: Multiplies q·k.
        window: Positions that a query sees, its own included; None for all.
        softcap: `cap · tanh(x / cap)` on the scaled products.

    Returns:
        T H d, in the dtype of the queries; sums are of float32.
    """
    out_THd = torch.empty_like(q_THd)
    shape = (keys_SKd.shape[1], q_THd.shape[1] // keys_SKd.shape[1])
    within = torch.arange(tiles.block_tokens, device=q_THd.device)
    columns = (tiles.rows_N, tiles.positions_N, tiles.counts_N, tiles.begins_N)
    for row, position, count, begin in zip(*(column.tolist() for column in columns), strict=True):
        first, end = 0 if window is None else max(0, position + 1 - window), position + count
        table = tiles.blocks[begin : begin - (-end // tiles.block_tokens)].long()
        places_S = (table[:, None] * tiles.block_tokens + within).flatten()[first:end]
        queries = slice(row, row + count)
        scores_KGTS = scale * torch.einsum(
            "tkgd,skd->kgts", q_THd[queries].unflatten(1, shape).float(), keys_SKd[places_S].float()
        )
        if softcap is not None:
            scores_KGTS = softcap * torch.tanh(scores_KGTS / softcap)
        own_T = torch.arange(position, end, device=q_THd.device)[:, None]
        distance_TS = own_T - torch.arange(first, end, device=q_THd.device)
        visible_TS = (distance_TS >= 0) & (distance_TS < (window or end))
        weights_KGTS = scores_KGTS.masked_fill(~visible_TS, float("-inf")).softmax(-1)
        out_TKGd = torch.einsum("kgts,skd->tkgd", weights_KGTS, values_SKd[places_S].float())
        out_THd[queries] = out_TKGd.flatten(1, 2).to(out_THd.dtype)
    return out_THd


@paged_attention.fast("cuda", torch.float32, torch.bfloat16, torch.float16)
def _in_triton(
    q_THd: Tensor,
    keys_SKd: Tensor,
    values_SKd: Tensor,
    tiles: QueryTiles,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor | None:
    if not triton.is_available():
        return None
    from tallow.kernels.triton.paged_attention import attend

    return attend(q_THd, keys_SKd, values_SKd, tiles, scale, window, softcap)
