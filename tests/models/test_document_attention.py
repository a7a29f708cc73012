from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks import context as contexts
from tallow.models.blocks.context import AttentionSpec, SequenceContext
from tallow.models.blocks.document_attention import Documents
from tallow.objectives.causal import document_starts, positions_within

DOCUMENTS_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, -1, -1]], dtype=torch.int32)
POSITIONS_BT = positions_within(document_starts(DOCUMENTS_BT))


def one_by_one(
    q_NHd: Tensor,
    k_NKd: Tensor,
    v_NKd: Tensor,
    ends_N: Tensor,
    key_ends_N: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What PyTorch's `varlen_attn`, which runs on GPUs alone, is documented to give."""
    assert ends_N.dtype == torch.int32
    assert torch.equal(ends_N, key_ends_N)
    assert max_q == max_k == int(ends_N.diff().max())
    assert enable_gqa == (q_NHd.shape[1] > k_NKd.shape[1])
    left, right = window_size
    assert right == 0
    parts = []
    for start, end in zip(ends_N.tolist(), ends_N.tolist()[1:], strict=False):
        q_HTd, k_KTd, v_KTd = (x[start:end].transpose(0, 1)[None] for x in (q_NHd, k_NKd, v_NKd))
        distance_TT = torch.arange(end - start)[:, None] - torch.arange(end - start)[None]
        mask_TT = (distance_TT >= 0) & ((distance_TT <= left) if left >= 0 else (distance_TT >= 0))
        out = F.scaled_dot_product_attention(q_HTd, k_KTd, v_KTd, mask_TT, scale=scale, enable_gqa=enable_gqa)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("moved", [False, True])
def test_document_by_document_is_as_with_a_mask(
    monkeypatch: pytest.MonkeyPatch, window: int | None, kv_heads: int, moved: bool
) -> None:
    spec = AttentionSpec(layer=0, scale=0.3, window=window)
    q_BHTd = torch.randn(2, 4, 8, 16)
    k_BKTd, v_BKTd = torch.randn(2, 2, kv_heads, 8, 16)
    masked = SequenceContext(POSITIONS_BT, DOCUMENTS_BT).attend(spec, q_BHTd, k_BKTd, v_BKTd)
    module: Any = types.ModuleType("varlen")
    module.varlen_attn = one_by_one
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    monkeypatch.setattr(contexts, "better_by_document", lambda _values: True)
    monkeypatch.setattr(contexts, "same_document", None)  # no mask is made
    context = SequenceContext(POSITIONS_BT, DOCUMENTS_BT)
    context = context.to(torch.device("cpu")) if moved else context
    torch.testing.assert_close(context.attend(spec, q_BHTd, k_BKTd, v_BKTd), masked)


def test_documents_begin_with_rows_and_at_position_0() -> None:
    documents = Documents.of_positions(POSITIONS_BT)
    assert documents.ends_N.tolist() == [0, 3, 7, 8, 14, 16]
    assert documents.longest == 6
    documents = Documents.of_positions(torch.arange(5, 9).expand(2, 4))
    assert documents.ends_N.tolist() == [0, 4, 8]


@pytest.mark.parametrize("masked", [False, True])
def test_keys_are_repeated_where_no_kernel_shares_them(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    q_BHTd = torch.randn(1, 4, 6, 8)
    k_BKTd, v_BKTd = torch.randn(2, 1, 2, 6, 8)
    spec = AttentionSpec(layer=0, scale=0.3)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril() if masked else None
    expected = contexts.attention(q_BHTd, k_BKTd, v_BKTd, mask, spec)
    monkeypatch.setattr(contexts, "fused_takes_groups", lambda _values, _mask: False)
    asked: list[bool] = []
    plain = F.scaled_dot_product_attention

    def attend(*arguments: Any, **settings: Any) -> Tensor:
        asked.append(settings["enable_gqa"])
        return plain(*arguments, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    torch.testing.assert_close(contexts.attention(q_BHTd, k_BKTd, v_BKTd, mask, spec), expected)
    assert asked == [False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_gpu_gives_what_a_cpu_gives(window: int | None, kv_heads: int) -> None:
    spec = AttentionSpec(layer=0, scale=0.3, window=window)
    found: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(2, heads, 8, 16, generator=generator) for heads in (4, kv_heads, kv_heads, 4)]
        q, k, v, outer = (x.bfloat16().to(device) for x in tensors)
        for x in (q, k, v):
            x.requires_grad_()
        out = SequenceContext(POSITIONS_BT, DOCUMENTS_BT).to(torch.device(device)).attend(spec, q, k, v)
        found.append([x.float().cpu() for x in (out, *torch.autograd.grad(out, (q, k, v), outer))])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=0.02, atol=0.02)
