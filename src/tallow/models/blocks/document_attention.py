"""Causal attention over packed documents on a GPU, document by document: no mask exists, and nothing is computed that
no token sees (FlashAttention-2, arXiv 2307.08691, for sequences of various lengths)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.models.blocks.send import send

HALVES = (torch.bfloat16, torch.float16)
# what the kernel is made for: Ampere and later, heads that fit its tiles
CAPABILITY = (8, 0)
MAX_HEAD_SIZE, HEAD_MULTIPLE = 256, 8


@dataclass(frozen=True)
class Documents:
    """The documents of packed rows, all rows one after the other; what is padding counts as a document.

    Args:
        ends_N: Where each begins, and where the last one ends: int32, N = their number + 1.
        longest: Tokens of the longest one.
    """

    ends_N: Tensor
    longest: int

    @classmethod
    def of_positions(cls, positions_BT: Tensor) -> Documents:
        """Those of rows with these positions: one begins with each row, and wherever the position is 0."""
        starts_BT = positions_BT == 0
        starts_BT[:, 0] = True
        starts_N = starts_BT.flatten().nonzero().flatten()
        ends_N = torch.cat([starts_N, starts_N.new_tensor([positions_BT.numel()])])
        return cls(ends_N.int(), int(ends_N.diff().max()))

    def to(self, device: torch.device) -> Documents:
        """The same for tensors on a device, without waiting for it."""
        return Documents(send(self.ends_N, device), self.longest)


def better_by_document(v_BKTd: Tensor) -> bool:
    """Whether there is a kernel for these values; autocast may leave queries and keys wider than it computes with."""
    return _is_fused(v_BKTd) and v_BKTd.shape[-1] % HEAD_MULTIPLE == 0


def fused_takes_groups(v_BKTd: Tensor, mask: Tensor | None) -> bool:
    """Whether PyTorch's attention without a matrix of scores lets several heads of queries share these values.

    On a GPU only one of its kernels does, which takes halves and no masks; where it must not be used all scores would
    lie in memory.
    """
    return v_BKTd.device.type != "cuda" or (mask is None and _is_fused(v_BKTd))


def attention_by_document(
    q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, documents: Documents, scale: float, window: int | None
) -> Tensor:
    """Softmax attention with grouped keys and values, B H T d; a token sees those of its document up to itself.

    Args:
        window: Of so many tokens, itself among them; None: of all.
    """
    from torch.nn.attention.varlen import varlen_attn  # slow to import: it brings PyTorch's compiler with it

    batch, heads = q_BHTd.shape[:2]
    q_NHd, k_NKd, v_NKd = (x.to(v_BKTd.dtype).transpose(1, 2).flatten(0, 1) for x in (q_BHTd, k_BKTd, v_BKTd))
    out_NHd = varlen_attn(
        q_NHd,
        k_NKd,
        v_NKd,
        documents.ends_N,
        documents.ends_N,
        documents.longest,
        documents.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=heads > k_NKd.shape[1],
    )
    assert isinstance(out_NHd, Tensor)
    return out_NHd.unflatten(0, (batch, -1)).transpose(1, 2)


def _is_fused(v_BKTd: Tensor) -> bool:
    device = v_BKTd.device
    return (
        device.type == "cuda"
        and v_BKTd.dtype in HALVES
        and v_BKTd.shape[-1] <= MAX_HEAD_SIZE
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )
