from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tallow.data.batch import Packed, collate


def packed(*tokens: int) -> Packed:
    tokens_BT = torch.tensor([tokens])
    return Packed(
        tokens_BT, torch.zeros_like(tokens_BT, dtype=torch.int32), torch.ones_like(tokens_BT, dtype=torch.bool)
    )


def test_collate_pads_with_what_no_objective_trains_on() -> None:
    batch = collate([packed(1, 2, 3), packed(4), packed(5, 6)])
    assert batch.tokens_BT.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert batch.documents_BT.tolist() == [[0, 0, 0], [0, -1, -1], [0, 0, -1]]
    assert batch.trainable_BT.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch.documents_BT.dtype == torch.int32


def test_collate_of_batches_is_associative() -> None:
    rows = [packed(1, 2), packed(3, 4, 5), packed(6)]
    nested, flat = collate([collate(rows[:2]), rows[2]]), collate(rows)
    assert torch.equal(nested.tokens_BT, flat.tokens_BT)
    assert torch.equal(nested.documents_BT, flat.documents_BT)
    assert torch.equal(nested.trainable_BT, flat.trainable_BT)


def test_rows_keep_their_numbers() -> None:
    numbered = [replace(packed(*range(size)), numbers_B=torch.tensor([size])) for size in (2, 3)]
    batch = collate(numbered)
    assert batch.numbers_B is not None
    assert batch.numbers_B.tolist() == [2, 3]
    first = batch.first_rows()
    assert first.numbers_B is not None
    assert (first.tokens_BT.tolist(), first.numbers_B.tolist()) == ([[0, 1, 0]], [2])
    assert collate([packed(1)]).first_rows().numbers_B is None
    with pytest.raises(AssertionError, match="no number"):
        collate([numbered[0], packed(1)])


def test_packed_holds_its_contract() -> None:
    row = packed(1, 2)
    with pytest.raises(AssertionError):
        Packed(row.tokens_BT, row.documents_BT[:, :1], row.trainable_BT)
    with pytest.raises(AssertionError):
        Packed(row.tokens_BT.int(), row.documents_BT, row.trainable_BT)
    with pytest.raises(AssertionError):
        Packed(row.tokens_BT, row.documents_BT.long(), row.trainable_BT)
    with pytest.raises(AssertionError):
        Packed(row.tokens_BT, row.documents_BT, row.trainable_BT.int())
