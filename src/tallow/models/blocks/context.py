"""What attention sees: the one seam between a model and those who train or serve it.

Blocks compute queries, keys and values and hand them to a context. In training the context knows which
tokens see which; in serving it also carries the key-value cache. So one module serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.kernels.cpu.causal_attention import causal_attention, is_suited
from tallow.models.blocks.document_attention import (
    Documents,
    attention_by_document,
    better_by_document,
    fused_takes_groups,
)
from tallow.models.blocks.send import send


@dataclass(frozen=True)
class AttentionSpec:
    """The constants of one layer's attention: its index, the factor on q·k, its window and soft cap."""

    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None


class Context(Protocol):
    """The tokens of a forward pass, and how they attend.

    Args:
        positions_BT: Positions, int64; a sequence starts at 0.
        padding_BT: Places that hold no token of a text, bool; None where there are none.
    """

    positions_BT: Tensor
    padding_BT: Tensor | None

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        """Attention output, B H T d; K divides H."""
        ...

    def sum_over_sequences(self, values_NE: Tensor) -> Tensor:
        """For each place the sum of what is given for all places of its sequence, N E; N = B T, row after row."""
        sequences_N = sequence_numbers(self.positions_BT).flatten()
        sums_SE = values_NE.new_zeros(int(sequences_N[-1]) + 1, values_NE.shape[1])
        return sums_SE.index_add_(0, sequences_N, values_NE)[sequences_N]


@runtime_checkable
class Masked(Protocol):
    """A context of whole rows that can tell which place sees which, for who computes attention in parts."""

    def visible(self, queries: range, keys: range, window: int | None) -> Tensor:
        """Whether each of some places sees each of others, bool, B 1 Q S or 1 1 Q S.

        Args:
            window: Of the layer, as in `AttentionSpec`.
        """
        ...


@runtime_checkable
class Movable(Protocol):
    """A context that can follow a model to its device."""

    def to(self, device: torch.device) -> Context:
        """The same for tensors on a device, without waiting for it."""
        ...


def sequence_numbers(positions_BT: Tensor) -> Tensor:
    """Which of all the sequences of all rows each place belongs to, int64, B T; one begins at each position 0."""
    starts_BT = positions_BT == 0
    starts_BT[:, 0] = True
    return (starts_BT.flatten().cumsum(0) - 1).view_as(positions_BT)


class SequenceContext(Context):
    """Causal attention over whole sequences, for training and scoring.

    Args:
        positions_BT: Position of each token in its document.
        documents_BT: Number of the document that each token belongs to; tokens see only their own
            document, so a packed row equals its documents run one by one. None: one document a row.
        padding_BT: Places that hold no token of a text; None: there are none.
    """

    def __init__(
        self, positions_BT: Tensor, documents_BT: Tensor | None = None, padding_BT: Tensor | None = None
    ) -> None:
        self.positions_BT = positions_BT
        self.documents_BT = documents_BT
        self.padding_BT = padding_BT
        self._documents: Documents | None = None
        self._masks: dict[int | None, Tensor | None] = {}
        self._firsts: dict[int | None, Tensor | None] = {}

    @classmethod
    def plain(cls, batch: int, length: int, device: torch.device | None = None) -> SequenceContext:
        """One document a row, positions from 0."""
        return cls(torch.arange(length, device=device).expand(batch, length))

    def to(self, device: torch.device) -> SequenceContext:
        """The same for tensors on a device, without waiting for it: where documents begin is found here."""
        positions_BT = send(self.positions_BT, device)
        documents_BT, padding_BT = (
            None if tensor is None else send(tensor, device) for tensor in (self.documents_BT, self.padding_BT)
        )
        moved = SequenceContext(positions_BT, documents_BT, padding_BT)
        moved._documents = Documents.of_positions(self.positions_BT).to(device)
        return moved

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        window = spec.window if spec.window is not None and spec.window < q_BHTd.shape[2] else None
        if spec.softcap is None and is_suited(q_BHTd, k_BKTd, v_BKTd):
            if window not in self._firsts:
                self._firsts[window] = self._first(window)
            if (first_BT := self._firsts[window]) is not None:
                return causal_attention(q_BHTd, k_BKTd, v_BKTd, first_BT, spec.scale)
        masked = window is not None or self.documents_BT is not None
        if masked and spec.softcap is None and better_by_document(v_BKTd):
            if self._documents is None:
                self._documents = Documents.of_positions(self.positions_BT)
            return attention_by_document(q_BHTd, k_BKTd, v_BKTd, self._documents, spec.scale, window)
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return attention(q_BHTd, k_BKTd, v_BKTd, self._masks[window], spec)

    def _first(self, window: int | None) -> Tensor | None:
        """Of each place the first that it sees, B T, if it sees all from there to itself."""
        first_BT = first_visible(self.documents_BT, self.positions_BT.shape[1], window)
        return None if first_BT is None else first_BT.expand(self.positions_BT.shape)

    def _mask(self, window: int | None) -> Tensor | None:
        """Which key each query sees, B 1 T T; None for plain causal order (the fast path)."""
        if window is None and self.documents_BT is None:
            return None
        places = range(self.positions_BT.shape[1])
        return self.visible(places, places, window)

    def visible(self, queries: range, keys: range, window: int | None) -> Tensor:
        """Whether each of some places sees each of others, bool, B 1 Q S or 1 1 Q S."""
        device = self.positions_BT.device
        query_Q, key_S = (torch.arange(x.start, x.stop, device=device) for x in (queries, keys))
        distance_QS = query_Q[:, None] - key_S[None, :]
        mask_QS = distance_QS >= 0
        if window is not None:
            mask_QS &= distance_QS < window
        if self.documents_BT is None:
            return mask_QS[None, None]
        return (mask_QS & same_document(self.documents_BT, queries, keys))[:, None]


def first_visible(documents_BT: Tensor | None, tokens: int, window: int | None) -> Tensor | None:
    """Of each place the first that it sees, if it sees all from there to itself, int32, B T or 1 T; else None.

    Args:
        documents_BT: As `SequenceContext` has them; a document in two pieces leaves gaps in what is seen.
        window: As in `AttentionSpec`.
    """
    places_T = torch.arange(tokens)
    first_BT = torch.zeros(1, tokens, dtype=torch.int64)
    if documents_BT is not None:
        begins_BT = torch.nn.functional.pad(documents_BT.diff(dim=1) != 0, (1, 0), value=True)
        num_documents = (documents_BT.sort(dim=1).values.diff(dim=1) != 0).sum(1) + 1
        if not torch.equal(begins_BT.sum(1), num_documents):
            return None
        first_BT = (begins_BT * places_T).cummax(1).values
    if window is not None:
        first_BT = first_BT.maximum(places_T - (window - 1))
    return first_BT.int()


def same_document(documents_BT: Tensor, queries: range, keys: range) -> Tensor:
    """Whether each of some places is of the same document as each of others, bool, B Q S."""
    return documents_BT[:, queries.start : queries.stop, None] == documents_BT[:, None, keys.start : keys.stop]


def attention(q_BHTd: Tensor, k_BKSd: Tensor, v_BKSd: Tensor, mask_B1TS: Tensor | None, spec: AttentionSpec) -> Tensor:
    """Softmax attention with grouped keys and values.

    Args:
        mask_B1TS: True where a query sees a key; None for causal order aligned at the end of the keys
            (then T must be S or 1).
    """
    batch, heads, queries, head_size = q_BHTd.shape
    kv_heads = k_BKSd.shape[1]
    causal, grouped = mask_B1TS is None and queries > 1, heads > kv_heads and queries > 1
    if grouped and spec.softcap is None and not fused_takes_groups(v_BKSd, mask_B1TS):
        k_BKSd, v_BKSd = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BKSd, v_BKSd))
        grouped = False
    if queries == 1:
        # the heads of a group see the same keys: as queries of one head they read them once, without copies
        q_BHTd = q_BHTd.reshape(batch, kv_heads, heads // kv_heads, head_size)
    if spec.softcap is None:
        out = F.scaled_dot_product_attention(
            q_BHTd, k_BKSd, v_BKSd, attn_mask=mask_B1TS, is_causal=causal, scale=spec.scale, enable_gqa=grouped
        )
        return out.reshape(batch, heads, queries, head_size)
    if grouped:
        k_BKSd, v_BKSd = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BKSd, v_BKSd))
    scores_BHTS = q_BHTd @ k_BKSd.transpose(-1, -2) * spec.scale
    scores_BHTS = spec.softcap * torch.tanh(scores_BHTS / spec.softcap)
    if causal:
        mask_B1TS = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).tril()
    if mask_B1TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, float("-inf"))
    out = scores_BHTS.float().softmax(-1).to(v_BKSd.dtype) @ v_BKSd
    return out.reshape(batch, heads, queries, head_size)
