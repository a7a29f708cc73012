"""Attention in both directions, for encoders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks.context import AttentionSpec


class BidirectionalContext:
    """Each token sees every token of its document, before it and after it.

    Args:
        positions_BT: Position of each token in its document.
        documents_BT: Number of the document that each token belongs to; tokens see only their own document, so a
            packed row equals its documents run one by one. Padding is a document of its own, which no other token
            sees. None: each row is one document without padding.
    """

    padding_BT: Tensor | None = None  # nothing that is not attention asks for it: encoders have no experts

    def __init__(self, positions_BT: Tensor, documents_BT: Tensor | None = None) -> None:
        self.positions_BT = positions_BT
        self.mask_B1TT = (
            None if documents_BT is None else (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]
        )

    @classmethod
    def plain(cls, batch: int, length: int, device: torch.device | None = None) -> BidirectionalContext:
        """One document a row, positions from 0."""
        return cls(torch.arange(length, device=device).expand(batch, length))

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        assert spec.window is None, "windows reach backwards only"
        assert spec.softcap is None, "no encoder caps its scores"
        grouped = q_BHTd.shape[1] > k_BKTd.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTd, k_BKTd, v_BKTd, attn_mask=self.mask_B1TT, scale=spec.scale, enable_gqa=grouped
        )
