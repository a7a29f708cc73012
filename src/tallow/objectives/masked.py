"""Masked-language modelling: tokens are hidden and predicted from both sides (BERT; arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tallow.data.batch import PADDING_DOCUMENT, Packed
from tallow.errors import UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.objectives.causal import document_starts, positions_within
from tallow.objectives.example import Example, Objective
from tallow.tokenizer.tokenizer import Tokenizer

CHOSEN = 0.15
"""Share of a row's ordinary tokens that are to be predicted."""

MASKED, REPLACED = 0.8, 0.1
"""Of those, the shares that show the mask token and that show another token at random; the rest show themselves."""


def make_masked(tokenizer: Tokenizer, seed: int) -> Objective:
    """The objective for texts of this tokenizer.

    Args:
        seed: With a row's number, all that its masks depend on.

    Raises:
        UsageError: The tokenizer has no mask token.
    """
    mask_id = tokenizer.mask_id
    if mask_id is None:
        raise UsageError(
            "the tokenizer has no mask token, without which masked tokens cannot be learned",
            "set tokenizer.mask_token, such as <|mask|>, and encode the documents with that tokenizer",
        )
    ordinary_V = torch.tensor(
        [id not in tokenizer.special_ids and bool(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    )
    return lambda packed: masked(packed, mask_id, ordinary_V, seed)


def masked(packed: Packed, mask_id: int, ordinary_V: Tensor, seed: int) -> Example:
    """Predict a share of each row's ordinary tokens, most of which the model does not see.

    Which are chosen, and what is shown in their place, depends on the seed and the row's number alone: not on how rows
    are divided over steps, micro-batches and processes. In each epoch it is another choice (as in RoBERTa; 1907.11692,
    section 4.1). As with other objectives the last token of a row is left to the next row, which begins with it.

    Args:
        packed: Rows with their numbers.
        ordinary_V: Which tokens may be chosen, and shown in place of others; bool. Special ones are not among them.
    """
    assert packed.numbers_B is not None, "masks are drawn by the number of the row"
    tokens_BT, documents_BT = packed.tokens_BT[:, :-1], packed.documents_BT[:, :-1]
    places_BT = ordinary_V[tokens_BT] & packed.trainable_BT[:, :-1] & (documents_BT != PADDING_DOCUMENT)
    choice_BT, fate_BT, other_BT = draw(packed.numbers_B, tokens_BT.shape[1], seed)
    chosen_BT = _choose(places_BT, choice_BT)
    ordinary_N = ordinary_V.nonzero().flatten()
    others_BT = ordinary_N[(other_BT * len(ordinary_N)).long()]
    shown_BT = torch.where(fate_BT < MASKED, mask_id, others_BT)
    shown_BT = torch.where(fate_BT < MASKED + REPLACED, shown_BT, tokens_BT)
    one_document = bool((documents_BT == documents_BT[:, :1]).all())
    return Example(
        inputs_BT=torch.where(chosen_BT, shown_BT, tokens_BT),
        targets_BT=tokens_BT,
        loss_mask_BT=chosen_BT,
        context=BidirectionalContext(
            positions_within(document_starts(documents_BT)), None if one_document else documents_BT
        ),
    )


def draw(numbers_B: Tensor, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers in [0, 1) for each place of each row, B T each; a place's do not depend on the row's length.

    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) takes seed and number as its key, so
    rows have streams of their own and none is ever far to seek.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64))).random((length, 3))
        for number in numbers_B.tolist()
    ]
    chances_BT3 = torch.from_numpy(np.stack(rows))
    return chances_BT3[..., 0], chances_BT3[..., 1], chances_BT3[..., 2]


def _choose(places_BT: Tensor, chance_BT: Tensor) -> Tensor:
    """Of each row's places the share with the lowest chances, rounded, and at least one where there is any."""
    counts_B1 = (CHOSEN * places_BT.sum(dim=1, keepdim=True)).round().clamp(min=1)
    ranks_BT = chance_BT.masked_fill(~places_BT, 2.0).argsort(dim=1).argsort(dim=1)
    return places_BT & (ranks_BT < counts_B1)
