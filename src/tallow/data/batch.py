"""Packed rows of tokens: what a data set gives and an objective takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class Packed:
    """Rows in which several documents may follow one another.

    Args:
        tokens_BT: int64, one token longer than the model sees.
        documents_BT: int32, number of the document within the row, `PADDING_DOCUMENT` for padding.
        trainable_BT: bool, whether the token may be a target.
        numbers_B: int64, each row's number among the rows of all epochs; None where no chance depends on it.
    """

    tokens_BT: Tensor
    documents_BT: Tensor
    trainable_BT: Tensor
    numbers_B: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.tokens_BT.shape == self.documents_BT.shape == self.trainable_BT.shape, "shapes differ"
        assert self.tokens_BT.dtype == torch.int64, self.tokens_BT.dtype
        assert self.documents_BT.dtype == torch.int32, self.documents_BT.dtype
        assert self.trainable_BT.dtype == torch.bool, self.trainable_BT.dtype
        assert self.numbers_B is None or len(self.numbers_B) == len(self.tokens_BT), "a number for each row"

    @classmethod
    def empty(cls) -> Packed:
        """A row of padding."""
        tokens_BT = torch.zeros(1, 2, dtype=torch.int64)
        documents_BT = torch.full_like(tokens_BT, PADDING_DOCUMENT, dtype=torch.int32)
        return cls(tokens_BT, documents_BT, tokens_BT.bool(), torch.zeros(1, dtype=torch.int64))

    def without_targets(self) -> Packed:
        """Rows of this shape that hold nothing but padding."""
        documents_BT = torch.full_like(self.documents_BT, PADDING_DOCUMENT)
        return Packed(self.tokens_BT, documents_BT, torch.zeros_like(self.trainable_BT), self.numbers_B)

    def rows(self, which: slice) -> Packed:
        """Some of the rows."""
        numbers_B = None if self.numbers_B is None else self.numbers_B[which]
        return Packed(self.tokens_BT[which], self.documents_BT[which], self.trainable_BT[which], numbers_B)

    def first_rows(self, count: int = 1) -> Packed:
        """The first rows alone; again from the first one where there are fewer."""
        rows = [number % len(self.tokens_BT) for number in range(count)]
        numbers_B = None if self.numbers_B is None else self.numbers_B[rows]
        return Packed(self.tokens_BT[rows], self.documents_BT[rows], self.trainable_BT[rows], numbers_B)


def collate(rows: Sequence[Packed]) -> Packed:
    """Stack batches into one, shorter rows padded on the right."""
    length = max(row.tokens_BT.shape[1] for row in rows)

    def join(tensors: Sequence[Tensor], padding: int) -> Tensor:
        padded = [torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=padding) for tensor in tensors]
        return torch.cat(padded)

    numbers = [row.numbers_B for row in rows if row.numbers_B is not None]
    assert len(numbers) in (0, len(rows)), "some rows have no number"
    return Packed(
        join([row.tokens_BT for row in rows], 0),
        join([row.documents_BT for row in rows], PADDING_DOCUMENT),
        join([row.trainable_BT for row in rows], 0),
        torch.cat(numbers) if numbers else None,
    )
