"""Attention in both directions, for encoders."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks.context import AttentionSpec, Context, same_document
from tallow.models.blocks.send import send


class BidirectionalContext(Context):
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
        self.documents_BT = documents_BT

    @classmethod
    def plain(cls, batch: int, length: int, device: torch.device | None = None) -> BidirectionalContext:
        """One document a row, positions from 0."""
        return cls(torch.arange(length, device=device).expand(batch, length))

    def to(self, device: torch.device) -> BidirectionalContext:
        """The same for tensors on a device, without waiting for it."""
        documents_BT = None if self.documents_BT is None else send(self.documents_BT, device)
        return BidirectionalContext(send(self.positions_BT, device), documents_BT)

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        assert spec.window is None, "windows reach backwards only"
        assert spec.softcap is None, "no encoder caps its scores"
        grouped = q_BHTd.shape[1] > k_BKTd.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTd, k_BKTd, v_BKTd, attn_mask=self._mask_B1TT, scale=spec.scale, enable_gqa=grouped
        )

    def visible(self, queries: range, keys: range, window: int | None) -> Tensor:
        """Whether each of some places sees each of others, bool, B 1 Q S or 1 1 Q S."""
        assert window is None, "windows reach backwards only"
        if self.documents_BT is None:
            return torch.ones(1, 1, len(queries), len(keys), dtype=torch.bool, device=self.positions_BT.device)
        return same_document(self.documents_BT, queries, keys)[:, None]

    @cached_property
    def _mask_B1TT(self) -> Tensor | None:
        """Which key each query sees; None where each sees all."""
        places = range(self.positions_BT.shape[1])
        return None if self.documents_BT is None else self.visible(places, places, None)
