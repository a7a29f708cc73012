"""Attention of training in C++ against its definition, forward and backward, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels import cpu
from tallow.kernels.cpu import causal_attention as module
from tallow.kernels.dispatch import using
from tallow.models.blocks.context import AttentionSpec, SequenceContext, attention, first_visible

EXTENSION = cpu.native()
NAMES: list[str] = EXTENSION.operation_sets() if EXTENSION else []
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="installed without the C++ extension")


@pytest.fixture(params=NAMES)
def _instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "operation_set", lambda: request.param)


def random_qkv(tokens: int, heads: int, kv_heads: int, size: int = 16) -> list[Tensor]:
    """As projections give them: token by token."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, tokens, count, size) for count in (heads, kv_heads, kv_heads)]
    return [
        torch.randn(*shape, generator=generator).bfloat16().transpose(1, 2).detach().requires_grad_()
        for shape in shapes
    ]


def context_of(kind: str, tokens: int) -> SequenceContext:
    context = SequenceContext.plain(2, tokens)
    if kind != "documents":
        return context
    numbers_T = torch.arange(tokens) // max(1, tokens // 3)
    return SequenceContext(context.positions_BT, torch.stack([numbers_T, torch.zeros_like(numbers_T)]))


@needs_extension
@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("kind", ["causal", "window", "documents"])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "size"),
    [(2, 4, 4, 16), (63, 3, 1, 64), (64, 2, 2, 34), (65, 4, 2, 80), (200, 2, 1, 32), (130, 1, 1, 128)],
)
@pytest.mark.parametrize("together", [False, True])
def test_equals_attention_in_fp32_and_its_gradients(
    tokens: int, heads: int, kv_heads: int, size: int, kind: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENOUGH_GROUPS", 1 if together else 1000)
    assert module._together(*random_qkv(1, heads, kv_heads)[:2]) == (heads // kv_heads if together else 1)
    q, k, v = random_qkv(tokens, heads, kv_heads, size)
    context = context_of(kind, tokens)
    spec = AttentionSpec(layer=0, scale=size**-0.5, window=max(1, tokens // 3) if kind == "window" else None)
    with using("fast"):
        got = context.attend(spec, q, k, v)
    assert type(got.grad_fn).__name__ == "_CausalAttentionBackward"
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = attention(exact[0], exact[1], exact[2], context._mask(spec.window), spec)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = torch.autograd.grad(got, (q, k, v), direction)
    right = torch.autograd.grad(expected, exact, direction.float())
    for ours, theirs in zip((got, *found), (expected, *right), strict=True):
        # probabilities, slopes and results are rounded to 8 bits
        assert (ours.float() - theirs).norm() <= 0.006 * theirs.norm() + 1e-5
        torch.testing.assert_close(ours.float(), theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item() + 1e-6)


@needs_extension
@pytest.mark.usefixtures("_instruction_set")
def test_scores_far_below_zero_still_have_weights() -> None:
    q, k, v = random_qkv(70, 1, 1)
    far = [(q * 0 + 1e17).detach().requires_grad_(), (k * 0 - 1e17).detach().requires_grad_(), v]
    spec = AttentionSpec(layer=0, scale=0.25)
    with using("fast"):
        got = SequenceContext.plain(2, 70).attend(spec, *far)
    assert type(got.grad_fn).__name__ == "_CausalAttentionBackward"
    counts = torch.arange(1, 71)[:, None]  # all weights of a row are the same
    torch.testing.assert_close(got.float(), v.float().cumsum(2) / counts, rtol=0.02, atol=0.02)


@needs_extension
def test_it_is_taken_only_where_bfloat16_is_trained() -> None:
    spec = AttentionSpec(layer=0, scale=0.25)
    q, k, v = random_qkv(20, 4, 2)
    with using("fast"):
        assert module.is_suited(q, k, v)
        assert not module.is_suited(q.detach(), k, v)
        assert not module.is_suited(*(x.float() for x in (q, k, v)))
        split = SequenceContext(torch.arange(20).expand(2, 20), torch.tensor([0, 1] * 10).expand(2, 20))
        split.attend(spec, q, k, v)  # documents in pieces: by a mask
        assert list(split._masks) == [None]
    with using("reference"):
        assert not module.is_suited(q, k, v)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    window=st.one_of(st.none(), st.integers(1, 9)),
    again=st.booleans(),
)
def test_first_visible_says_what_the_mask_says(lengths: list[int], window: int | None, again: bool) -> None:
    numbers = [number for number, length in enumerate(lengths) for _ in range(length)]
    numbers += [0] * again  # a document in two pieces, if there are others
    documents_BT = torch.tensor([numbers])
    first_BT = first_visible(documents_BT, len(numbers), window)
    mask_TT = SequenceContext(torch.arange(len(numbers))[None], documents_BT).visible(
        range(len(numbers)), range(len(numbers)), window
    )[0, 0]
    if first_BT is None:
        assert again
        assert len(lengths) > 1
        return
    places_T = torch.arange(len(numbers))
    assert torch.equal(mask_TT, (places_T >= first_BT[0][:, None]) & (places_T <= places_T[:, None]))
