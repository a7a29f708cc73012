from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tallow.models.blocks import block_attention
from tallow.models.blocks.block_attention import attention_in_blocks, block_biases
from tallow.models.blocks.context import AttentionSpec, SequenceContext, attention


def random_qkv(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(2, count, tokens, 16, generator=generator).to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


def mask_of(kind: str, tokens: int) -> Tensor | None:
    context = SequenceContext.plain(2, tokens)
    if kind == "documents":
        numbers = torch.arange(tokens) // max(1, tokens // 3)
        context = SequenceContext(context.positions_BT, torch.stack([numbers, torch.zeros_like(numbers)]))
    return context._mask(tokens // 2 if kind == "window" else None)


@pytest.mark.parametrize("mask", ["causal", "window", "documents"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("tokens", [2, 128, 129, 300])
def test_equals_plain_attention_and_its_gradient(tokens: int, heads: int, kv_heads: int, mask: str) -> None:
    q, k, v = random_qkv(tokens, heads, kv_heads)
    seen = mask_of(mask, tokens)
    expected = attention(q, k, v, seen, AttentionSpec(layer=0, scale=0.3))
    got = attention_in_blocks(q, k, v, block_biases(seen, q), 0.3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        torch.autograd.grad(got, (q, k, v), direction), torch.autograd.grad(expected, (q, k, v), direction), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_training_in_bfloat16_takes_it_and_stays_close_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec(layer=0, scale=0.25)
    exact = SequenceContext.plain(2, 200).attend(spec, *random_qkv(200, 4, 2))
    context = SequenceContext.plain(2, 200)
    rounded = context.attend(spec, *random_qkv(200, 4, 2, torch.bfloat16))
    assert context._biases
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)

    monkeypatch.setattr(block_attention, "MAX_TOKENS", 199)
    longer = SequenceContext.plain(2, 200)
    longer.attend(spec, *random_qkv(200, 4, 2, torch.bfloat16))
    with torch.no_grad():
        scoring = SequenceContext.plain(2, 100)
        scoring.attend(spec, *(x.detach() for x in random_qkv(100, 4, 2, torch.bfloat16)))
    assert not longer._biases
    assert not scoring._biases
