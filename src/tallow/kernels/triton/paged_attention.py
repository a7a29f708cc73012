"""Paged attention for decoding and prefill alike: tiles of queries, and where those are few, shares of their keys.

The softmax is computed while the keys pass by (FlashAttention, arXiv 2205.14135, section 3.1); the heads that share
keys are rows of one product. Where tiles do not fill the GPU, several programs take a share of the keys each, and a
second kernel weighs their results (Flash-Decoding).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tallow.kernels.paged_attention import QueryTiles

ROWS = 64
"""Rows of a product, queries times the heads of a group, where there are so many queries."""
MIN_ROWS = 16
"""What a tensor core's product takes at least, in each dimension."""
PROGRAMS = 256
"""Fewer leave multiprocessors of a large GPU without work."""
MAX_SHARES = 32
STAGE_BYTES = 32 << 10
"""Shared memory for the keys and values of one turn of the loop; two are under way at a time."""
LOG2_E = tl.constexpr(1.4426950408889634)


def tile_size(group: int, head_bytes: int) -> int:
    """How many queries of a sequence make a good tile.

    Args:
        group: Heads that share keys.
        head_bytes: Memory of one head of a query; long ones would not fit in larger tiles.
    """
    return max(1, (ROWS if head_bytes <= 512 else ROWS // 2) // group)


def attend(
    q_THd: Tensor,
    keys_SKd: Tensor,
    values_SKd: Tensor,
    tiles: QueryTiles,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`tallow.kernels.paged_attention`."""
    tokens, heads, head_size = q_THd.shape
    kv_heads, num_tiles = keys_SKd.shape[1], len(tiles.rows_N)
    size = max(MIN_ROWS, triton.next_power_of_2(head_size))
    keys = STAGE_BYTES // (2 * size * keys_SKd.element_size())
    shares = min(MAX_SHARES, triton.next_power_of_2(triton.cdiv(PROGRAMS, num_tiles * kv_heads)))
    out_THd = torch.empty_like(q_THd, memory_format=torch.contiguous_format)
    sums_THNd = q_THd.new_empty((tokens, heads, shares, head_size), dtype=torch.float32) if shares > 1 else out_THd
    scales_2THN = q_THd.new_empty((2, tokens, heads, shares), dtype=torch.float32)
    constants: dict[str, Any] = {"head_size": head_size, "shares": shares, "D": size}
    tile_constants: dict[str, Any] = constants | {
        "heads": heads,
        "kv_heads": kv_heads,
        "block_tokens": tiles.block_tokens,
        "window": window or 0,
        "capped": softcap is not None,
        "M": max(MIN_ROWS, triton.next_power_of_2(tiles.size * (heads // kv_heads))),
        "N": min(128, max(MIN_ROWS, keys)),
        "num_warps": 4 if size <= 128 else 8,
        "num_stages": 2,
    }
    _attend[num_tiles, kv_heads, shares](
        q_THd,
        keys_SKd,
        values_SKd,
        sums_THNd,
        scales_2THN,
        tiles.rows_N,
        tiles.positions_N,
        tiles.counts_N,
        tiles.begins_N,
        tiles.blocks,
        scale,
        0.0 if softcap is None else softcap,
        q_THd.stride(0),
        q_THd.stride(1),
        scales_2THN.stride(0),
        **tile_constants,
    )
    if shares > 1:
        _weigh[tokens, heads](sums_THNd, scales_2THN, out_THd, scales_2THN.stride(0), heads, **constants)
    return out_THd


# what differs from step to step must not choose among compiled variants
@triton.jit(
    do_not_specialize=("scales_stride",),
    do_not_specialize_on_alignment=("tile_rows", "tile_positions", "tile_counts", "tile_begins", "blocks"),
)
def _attend(
    queries,
    keys,
    values,
    out,  # the result, or of each share what its weights sum up to
    scales,  # of each share its greatest score and the sum of its weights
    tile_rows,
    tile_positions,
    tile_counts,
    tile_begins,
    blocks,
    scale,
    softcap,
    query_stride,
    head_stride,
    scales_stride,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    block_tokens: tl.constexpr,
    window: tl.constexpr,
    capped: tl.constexpr,
    shares: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
):
    tile, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = heads // kv_heads
    position, count = tl.load(tile_positions + tile), tl.load(tile_counts + tile)
    table = blocks + tl.load(tile_begins + tile)
    query_M, entry_D = tl.arange(0, M) // group, tl.arange(0, D)
    row_M = (tl.load(tile_rows + tile) + query_M).to(tl.int64)
    head_M = kv_head * group + tl.arange(0, M) % group
    real_M, real_D = query_M < count, entry_D < head_size
    q_MD = tl.load(
        queries + (row_M * query_stride + head_M * head_stride)[:, None] + entry_D[None, :],
        mask=real_M[:, None] & real_D[None, :],
        other=0.0,
    )

    end = position + count
    first = tl.maximum(position + 1 - window, 0) if window else 0
    turns = tl.cdiv(tl.cdiv(end, N) - first // N, shares)
    from_turn = first // N + share * turns
    to_turn = tl.minimum(from_turn + turns, tl.cdiv(end, N))
    greatest_M = tl.full((M,), float("-inf"), tl.float32)
    total_M = tl.zeros((M,), tl.float32)
    sum_MD = tl.zeros((M, D), tl.float32)
    for turn in range(from_turn, to_turn):
        key_N = turn * N + tl.arange(0, N)
        held_N = (key_N >= first) & (key_N < end)
        block_N = tl.load(table + key_N // block_tokens, mask=held_N, other=0).to(tl.int64)
        offset_N = ((block_N * block_tokens + key_N % block_tokens) * kv_heads + kv_head) * head_size
        k_DN = tl.load(keys + offset_N[None, :] + entry_D[:, None], mask=held_N[None, :] & real_D[:, None], other=0.0)
        score_MN = tl.dot(q_MD, k_DN, input_precision="ieee") * scale
        if capped:
            score_MN = softcap * (1 - 2 / (1 + tl.exp(2 * score_MN / softcap)))
        distance_MN = (position + query_M)[:, None] - key_N[None, :]
        seen_MN = held_N[None, :] & (distance_MN >= 0)
        if window:
            seen_MN = seen_MN & (distance_MN < window)
        score_MN = tl.where(seen_MN, score_MN * LOG2_E, float("-inf"))
        before_M = greatest_M
        greatest_M = tl.maximum(before_M, tl.max(score_MN, 1))
        # a row may not have seen any key yet: then everything is -inf, and weights nothing
        shift_M = tl.where(greatest_M == float("-inf"), 0.0, greatest_M)
        weight_MN, kept_M = tl.exp2(score_MN - shift_M[:, None]), tl.exp2(before_M - shift_M)
        total_M = total_M * kept_M + tl.sum(weight_MN, 1)
        v_ND = tl.load(values + offset_N[:, None] + entry_D[None, :], mask=held_N[:, None] & real_D[None, :], other=0.0)
        sum_MD = sum_MD * kept_M[:, None] + tl.dot(weight_MN.to(v_ND.dtype), v_ND, input_precision="ieee")

    place_M = (row_M * heads + head_M) * shares + share
    if shares == 1:
        # the greatest score has weight 1; only rows behind the tile's queries may have seen nothing
        sum_MD = sum_MD / tl.maximum(total_M, 1.0)[:, None]
    else:
        tl.store(scales + place_M, greatest_M, mask=real_M)
        tl.store(scales + scales_stride + place_M, total_M, mask=real_M)
    tl.store(
        out + place_M[:, None] * head_size + entry_D[None, :],
        sum_MD.to(out.dtype.element_ty),
        mask=real_M[:, None] & real_D[None, :],
    )


@triton.jit(do_not_specialize=("scales_stride",))
def _weigh(sums, scales, out, scales_stride, heads, head_size: tl.constexpr, shares: tl.constexpr, D: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    share_N, entry_D = tl.arange(0, shares), tl.arange(0, D)
    real_D = entry_D < head_size
    greatest_N = tl.load(scales + place * shares + share_N)
    weight_N = tl.exp2(greatest_N - tl.max(greatest_N, 0))
    total = tl.sum(weight_N * tl.load(scales + scales_stride + place * shares + share_N), 0)
    sum_ND = tl.load(
        sums + (place * shares + share_N)[:, None] * head_size + entry_D[None, :], mask=real_D[None, :], other=0.0
    )
    mean_D = tl.sum(sum_ND * (weight_N / total)[:, None], 0)
    tl.store(out + place * head_size + entry_D, mean_D.to(out.dtype.element_ty), mask=real_D)
