"""Causal attention of training on a CPU, with the processor's bfloat16 products forward and backward, in C++.

PyTorch's own does without them in the backward pass. As in flash attention (arXiv 2307.08691), nothing of the size of
the scores is kept.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tallow.kernels.cpu import native, operation_set, operations
from tallow.kernels.cpu.training import is_plain
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.threads import num_threads

ENOUGH_GROUPS = 8


def is_suited(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> bool:
    """Whether this is the faster way for these: when bfloat16 is trained here."""
    return (
        q_BHTd.requires_grad
        and q_BHTd.shape[3] % 2 == 0
        and all(x.dtype == torch.bfloat16 and is_plain(x) and x.stride(3) == 1 for x in (q_BHTd, k_BKTd, v_BKTd))
        and prefers_fast()
        and native() is not None
    )


def causal_attention(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, first_BT: Tensor, scale: float) -> Tensor:
    """Softmax attention with grouped keys and values, B H T d, of what `is_suited`.

    Args:
        first_BT: Of each query the first key that it sees, int32; it sees all from there to itself. Within a row it
            must never fall.
    """
    return _CausalAttention.apply(q_BHTd, k_BKTd, v_BKTd, first_BT.contiguous(), scale)


@functools.cache
def operators() -> Any:
    """Both passes as operators of PyTorch, so that it can tell who counts or keeps what is computed."""
    _LIBRARY.define(
        "causal_attention(Tensor query, Tensor key, Tensor value, Tensor first, float scale) -> (Tensor, Tensor)"
    )
    _LIBRARY.impl("causal_attention", _forward, "CPU")
    given = (
        "Tensor outer, Tensor query, Tensor key, Tensor value, Tensor first, float scale, Tensor out, Tensor log_sums"
    )
    _LIBRARY.define(f"causal_attention_backward({given}) -> (Tensor, Tensor, Tensor)")
    _LIBRARY.impl("causal_attention_backward", _backward, "CPU")
    return torch.ops.tallow


_LIBRARY = torch.library.Library("tallow", "DEF")


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, first_BT: Tensor, scale: float) -> Tensor:
        out_BHTd, log_sums_BHT = operators().causal_attention(q_BHTd, k_BKTd, v_BKTd, first_BT, scale)
        ctx.save_for_backward(q_BHTd, k_BKTd, v_BKTd, first_BT, out_BHTd, log_sums_BHT)
        ctx.scale = scale
        return out_BHTd

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTd, k_BKTd, v_BKTd, first_BT, out_BHTd, log_sums_BHT = ctx.saved_tensors
        given = (q_BHTd, k_BKTd, v_BKTd, first_BT, ctx.scale, out_BHTd, log_sums_BHT)
        return *operators().causal_attention_backward(outer[0], *given), None, None


def _forward(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, first_BT: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out_BHTd, log_sums_BHT = _token_by_token(q_BHTd), torch.empty(q_BHTd.shape[:3])
    _run(first_BT, scale, [q_BHTd, k_BKTd, v_BKTd, out_BHTd], log_sums_BHT, [], [])
    return out_BHTd, log_sums_BHT


def _backward(
    outer_BHTd: Tensor,
    q_BHTd: Tensor,
    k_BKTd: Tensor,
    v_BKTd: Tensor,
    first_BT: Tensor,
    scale: float,
    out_BHTd: Tensor,
    log_sums_BHT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    outer_BHTd = outer_BHTd if outer_BHTd.stride(3) == 1 else outer_BHTd.contiguous()
    by_q_BHTd = torch.empty(q_BHTd.shape, dtype=q_BHTd.dtype)
    batch, heads, tokens, size = q_BHTd.shape
    groups = heads // _together(q_BHTd, k_BKTd)
    by_heads = [torch.empty(batch, groups, tokens, size) for _ in range(2)]
    _run(first_BT, scale, [q_BHTd, k_BKTd, v_BKTd, out_BHTd], log_sums_BHT, [outer_BHTd, by_q_BHTd], by_heads)
    if groups > k_BKTd.shape[1]:
        by_heads = [x.unflatten(1, (k_BKTd.shape[1], -1)).sum(2) for x in by_heads]
    by_k, by_v = (x.to(k_BKTd.dtype) for x in by_heads)
    return by_q_BHTd, by_k, by_v


def _together(q_BHTd: Tensor, k_BKTd: Tensor) -> int:
    """Heads of queries that one thread computes together: all that read the same keys and values.

    Where that would leave little for each thread, each head is computed alone. Sums come out otherwise then, so this
    must not depend on the number of threads.
    """
    batch, kv_heads = k_BKTd.shape[:2]
    return q_BHTd.shape[1] // kv_heads if batch * kv_heads >= ENOUGH_GROUPS else 1


def _token_by_token(like_BHTd: Tensor) -> Tensor:
    """As the projection behind attention reads it."""
    batch, heads, tokens, size = like_BHTd.shape
    return torch.empty(batch, tokens, heads, size, dtype=like_BHTd.dtype).transpose(1, 2)


def _run(
    first_BT: Tensor,
    scale: float,
    given: list[Tensor],
    log_sums_BHT: Tensor,
    gradients: list[Tensor],
    by_heads: list[Tensor],
) -> None:
    extension: Any = native()
    batch, heads, tokens, size = given[0].shape
    threads = num_threads()
    scratch = torch.empty(threads * extension.attention_scratch(tokens, size) + 64, dtype=torch.uint8)
    by_keys, by_values = [x.data_ptr() for x in by_heads] or (0, 0)
    extension.attend_heads(
        operations(operation_set()),
        (batch, heads, given[1].shape[1], tokens, size),
        _together(given[0], given[1]),
        scale,
        first_BT.data_ptr(),
        [_places(x) for x in given],
        log_sums_BHT.data_ptr(),
        [_places(x) for x in gradients],
        by_keys,
        by_values,
        -(-scratch.data_ptr() // 64) * 64,
        threads,
    )


def _places(x_BHTd: Tensor) -> tuple[int, int, int, int]:
    return x_BHTd.data_ptr(), x_BHTd.stride(0), x_BHTd.stride(1), x_BHTd.stride(2)
