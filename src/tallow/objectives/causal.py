"""Next-token prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from tallow.data.batch import PADDING_DOCUMENT, Packed
from tallow.models.blocks.context import SequenceContext
from tallow.objectives.example import Example


def causal(packed: Packed) -> Example:
    """Each token predicts the next one of its document (GPT; arXiv 2005.14165, section 2).

    The token that ends a document is a target; the first token of the next document is not, since nothing
    before it tells of it. Positions start anew with each document. Rows without a document boundary get a
    context without documents, whose attention needs no mask.
    """
    tokens_BT, documents_BT = packed.tokens_BT, packed.documents_BT
    inside_BT = (documents_BT[:, 1:] == documents_BT[:, :-1]) & (documents_BT[:, 1:] != PADDING_DOCUMENT)
    seen_BT = documents_BT[:, :-1]
    starts_BT = document_starts(seen_BT)
    # what follows the last document is padding, which causal order hides from it
    padding_BT = seen_BT == PADDING_DOCUMENT
    one_document = not bool((starts_BT & ~padding_BT).any())
    return Example(
        inputs_BT=tokens_BT[:, :-1],
        targets_BT=tokens_BT[:, 1:],
        loss_mask_BT=inside_BT & packed.trainable_BT[:, 1:],
        context=SequenceContext(
            positions_within(starts_BT),
            None if one_document else seen_BT,
            padding_BT if bool(padding_BT.any()) else None,
        ),
    )


def document_starts(documents_BT: Tensor) -> Tensor:
    """Whether a token's document is another than that of the token before it, bool; not so for the row's first."""
    starts_BT = torch.zeros_like(documents_BT, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return starts_BT


def positions_within(starts_BT: Tensor) -> Tensor:
    """Distance of each token from the last start at or before it, int64; the row's beginning is a start."""
    index_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    return index_T - torch.where(starts_BT, index_T, 0).cummax(dim=1).values
