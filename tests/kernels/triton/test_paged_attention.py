"""The kernel against its reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels.paged_attention import QueryTiles, paged_attention
from tallow.models.blocks.context import AttentionSpec, attention

attending = pytest.importorskip("tallow.kernels.triton.paged_attention", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies the bits of bfloat16 as integers
HALVES = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float16]
BLOCK_TOKENS = 16
Spans = Sequence[tuple[int, int]]
"""For each sequence how many tokens it has in the cache, and how many queries come after them."""


def make_tiles(spans: Spans, size: int, num_blocks: int) -> QueryTiles:
    """Blocks in random order."""
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(num_blocks)).tolist()
    columns, blocks, row = [], [], 0
    for start, length in spans:
        begin = len(blocks)
        blocks += [order.pop() for _ in range(-(-(start + length) // BLOCK_TOKENS))]
        for offset in range(0, length, size):
            columns.append((row + offset, start + offset, min(size, length - offset), begin))
        row += length
    table = torch.tensor(columns, dtype=torch.int32, device=DEVICE).T.contiguous()
    rows, positions, counts, begins = table
    tables = torch.tensor(blocks, dtype=torch.int32, device=DEVICE)
    return QueryTiles(rows, positions, counts, begins, tables, size, BLOCK_TOKENS)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def inputs(spans: Spans, heads: int, kv_heads: int, head_size: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Queries as the model has them, H T d transposed; keys and values full of what others have left."""
    num_blocks = 3 + sum(-(-(start + length) // BLOCK_TOKENS) for start, length in spans)
    q_THd = random(heads, sum(length for _, length in spans), head_size, seed=1).transpose(0, 1)
    shape = (num_blocks * BLOCK_TOKENS, kv_heads, head_size)
    return q_THd, random(*shape, seed=2), random(*shape, seed=3), num_blocks


@settings(max_examples=12)
@given(
    spans=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_size=st.sampled_from([8, 16, 24]),
    size=st.sampled_from([1, 5, 16]),
    window=st.sampled_from([None, 1, 7, 40]),
    softcap=st.sampled_from([None, 2.0]),
    programs=st.sampled_from([1, 8]),
)
def test_kernel_equals_the_reference(
    spans: Spans,
    kv_heads: int,
    group: int,
    head_size: int,
    size: int,
    window: int | None,
    softcap: float | None,
    programs: int,
) -> None:
    q_THd, keys, values, num_blocks = inputs(spans, kv_heads * group, kv_heads, head_size)
    tiles = make_tiles(spans, size, num_blocks)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attending, "PROGRAMS", programs)
        out_THd = attending.attend(q_THd, keys, values, tiles, head_size**-0.5, window, softcap)
    expected = paged_attention.reference(q_THd, keys, values, tiles, head_size**-0.5, window, softcap)
    torch.testing.assert_close(out_THd, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
def test_long_sequences_in_many_shares(window: int | None) -> None:
    """Several turns of the loop in each share, and shares without any key."""
    spans = [(700, 1), (0, 1), (300, 6)]
    q_THd, keys, values, num_blocks = inputs(spans, 3, 1, 16)
    tiles = make_tiles(spans, 4, num_blocks)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attending, "STAGE_BYTES", 32 * 2 * 16 * 4)
        for programs in (1, 16):
            patched.setattr(attending, "PROGRAMS", programs)
            out_THd = attending.attend(q_THd, keys, values, tiles, 0.25, window, None)
            expected = paged_attention.reference(q_THd, keys, values, tiles, 0.25, window, None)
            torch.testing.assert_close(out_THd, expected, atol=1e-5, rtol=1e-5)


def test_blocks_outside_the_window_are_not_read() -> None:
    spans = [(100, 3)]
    q_THd, keys, values, num_blocks = inputs(spans, 2, 1, 16)
    tiles = make_tiles(spans, 4, num_blocks)
    out_THd = attending.attend(q_THd, keys, values, tiles, 0.25, 40, None)
    tiles.blocks[:3] = -1
    assert torch.equal(attending.attend(q_THd, keys, values, tiles, 0.25, 40, None), out_THd)
    tiles.blocks[3] = 0  # position 61 of it is seen
    assert not torch.equal(attending.attend(q_THd, keys, values, tiles, 0.25, 40, None), out_THd)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("programs", [1, 16])
def test_half_precision(dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "PROGRAMS", programs)
    spans = [(50, 4), (9, 1)]
    *tensors, num_blocks = inputs(spans, 4, 2, 32)
    q_THd, keys, values = (tensor.to(dtype) for tensor in tensors)
    tiles = make_tiles(spans, 4, num_blocks)
    out_THd = attending.attend(q_THd, keys, values, tiles, 0.2, None, None)
    assert out_THd.dtype == dtype
    expected = paged_attention.reference(q_THd.float(), keys.float(), values.float(), tiles, 0.2)
    # weights and result are rounded: 8 bits of mantissa, or 11
    torch.testing.assert_close(out_THd.float(), expected, atol=2e-2 if dtype == torch.bfloat16 else 2e-3, rtol=1e-2)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 7])
def test_the_reference_is_the_models_attention(window: int | None, softcap: float | None) -> None:
    q_THd, keys, values, num_blocks = inputs([(0, 24)], 4, 2, 16)
    tiles = make_tiles([(0, 24)], 5, num_blocks)
    places = (tiles.blocks[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=DEVICE)).flatten()[:24]
    distance_TT = torch.arange(24)[:, None] - torch.arange(24)
    mask_TT = ((distance_TT >= 0) & (distance_TT < (window or 24))).to(DEVICE)
    k_1KTd, v_1KTd = (cache[places].transpose(0, 1)[None] for cache in (keys, values))
    spec = AttentionSpec(0, 0.25, window, softcap)
    expected = attention(q_THd.transpose(0, 1)[None], k_1KTd, v_1KTd, mask_TT[None, None], spec)[0].transpose(0, 1)
    result = paged_attention.reference(q_THd, keys, values, tiles, 0.25, window, softcap)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
