from __future__ import annotations

from dataclasses import replace

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tallow.data.batch import PADDING_DOCUMENT, Packed, collate
from tallow.errors import UsageError
from tallow.models.blocks.context import AttentionSpec
from tallow.objectives import OBJECTIVES, Example
from tallow.objectives.masked import masked
from tallow.tokenizer.tokenizer import Tokenizer

MASK, SPECIAL, VOCABULARY = 0, 2, 50
ORDINARY_V = torch.arange(VOCABULARY) >= SPECIAL


def pack(tokens_BT: Tensor, documents_BT: Tensor | None = None, first_number: int = 0) -> Packed:
    documents_BT = torch.zeros_like(tokens_BT) if documents_BT is None else documents_BT
    numbers_B = torch.arange(first_number, first_number + len(tokens_BT))
    return Packed(tokens_BT, documents_BT.int(), documents_BT != PADDING_DOCUMENT, numbers_B)


def text(rows: int, length: int, lowest: int = SPECIAL) -> Packed:
    generator = torch.Generator().manual_seed(3)
    return pack(torch.randint(lowest, VOCABULARY, (rows, length + 1), generator=generator))


def apply(packed: Packed, seed: int = 0) -> Example:
    return masked(packed, MASK, ORDINARY_V, seed)


def test_shares_are_those_of_the_paper() -> None:
    packed = text(400, 200)
    example = apply(packed)
    assert torch.equal(example.targets_BT, packed.tokens_BT[:, :-1])
    chosen_BT = example.loss_mask_BT
    assert (chosen_BT.sum(dim=1) == 30).all()
    assert torch.equal(example.inputs_BT[~chosen_BT], example.targets_BT[~chosen_BT])
    shown_N, wanted_N = example.inputs_BT[chosen_BT], example.targets_BT[chosen_BT]
    deviation = (0.25 / len(shown_N)) ** 0.5
    assert (shown_N == MASK).float().mean() == pytest.approx(0.8, abs=4 * deviation)
    same = 0.1 + 0.1 / (VOCABULARY - SPECIAL)
    assert (shown_N == wanted_N).float().mean() == pytest.approx(same, abs=4 * deviation)
    others_N = shown_N[(shown_N != MASK) & (shown_N != wanted_N)]
    assert set(others_N.tolist()) == set(range(SPECIAL, VOCABULARY))
    assert chosen_BT.float().mean(dim=0).std() < 0.03  # no place is preferred


@given(seed=st.integers(0, 2**32), data=st.data())
def test_special_and_padding_tokens_are_never_chosen_or_shown(seed: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 30))
    tokens = data.draw(st.lists(st.integers(1, VOCABULARY - 1), min_size=length + 1, max_size=length + 1))
    real = data.draw(st.integers(1, length + 1))
    documents_BT = torch.where(torch.arange(length + 1) < real, 0, PADDING_DOCUMENT)[None]
    packed = pack(torch.tensor([tokens]), documents_BT)
    example = apply(packed, seed)
    places_BT = ORDINARY_V[packed.tokens_BT[:, :-1]] & (documents_BT[:, :-1] != PADDING_DOCUMENT)
    count = int(places_BT.sum())
    assert not (example.loss_mask_BT & ~places_BT).any()
    assert int(example.loss_mask_BT.sum()) == min(count, max(1, round(0.15 * count)))
    changed_BT = example.inputs_BT != example.targets_BT
    assert not (changed_BT & ~example.loss_mask_BT).any()
    assert not (changed_BT & (example.inputs_BT != MASK) & ~ORDINARY_V[example.inputs_BT]).any()


def test_untrainable_tokens_are_not_chosen() -> None:
    packed = text(4, 40)
    trainable_BT = torch.arange(41).expand(4, 41) < 10
    example = apply(replace(packed, trainable_BT=trainable_BT))
    assert (example.loss_mask_BT.sum(dim=1) == 2).all()
    assert not example.loss_mask_BT[:, 10:].any()


def test_masks_depend_on_the_row_and_not_on_its_company() -> None:
    packed = text(8, 40)
    whole = apply(packed)
    for i, tokens_T in enumerate(packed.tokens_BT):
        alone = apply(pack(tokens_T[None], first_number=i))
        assert torch.equal(alone.inputs_BT[0], whole.inputs_BT[i])
        assert torch.equal(alone.loss_mask_BT[0], whole.loss_mask_BT[i])


def test_masks_do_not_depend_on_the_padding() -> None:
    tokens_BT = text(1, 40).tokens_BT
    documents_BT = torch.where(torch.arange(41) < 40, 0, PADDING_DOCUMENT)[None]
    row = pack(tokens_BT, documents_BT, first_number=7)
    alone, padded = apply(row), apply(collate([text(1, 90), row]))
    assert torch.equal(padded.inputs_BT[1, :40], alone.inputs_BT[0])
    assert torch.equal(padded.loss_mask_BT[1, :40], alone.loss_mask_BT[0])
    assert not padded.loss_mask_BT[1, 40:].any()


def test_every_epoch_and_every_seed_has_other_masks() -> None:
    packed = text(8, 40)
    first = apply(packed)
    assert torch.equal(first.inputs_BT, apply(packed).inputs_BT)
    epoch = apply(replace(packed, numbers_B=torch.arange(8, 16)))
    for other in (epoch, apply(packed, seed=1)):
        assert not (other.loss_mask_BT == first.loss_mask_BT).all(dim=1).any()
        shared = (other.loss_mask_BT & first.loss_mask_BT).sum() / first.loss_mask_BT.sum()
        assert shared == pytest.approx(0.15, abs=0.15)


def test_tokens_see_both_sides_of_their_document() -> None:
    documents_BT = torch.tensor([[0, 0, 1, 1, PADDING_DOCUMENT]])
    context = apply(pack(torch.tensor([[5, 6, 7, 8, 0]]), documents_BT)).context
    assert context.positions_BT.tolist() == [[0, 1, 0, 1]]
    value_BKTd = torch.arange(4.0).view(1, 1, 4, 1)
    out = context.attend(AttentionSpec(0, 1.0), torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1), value_BKTd)
    assert out.flatten().tolist() == [0.5, 0.5, 2.5, 2.5]


def test_by_its_name() -> None:
    words = {"[MASK]": 0, "[END]": 1, "light": 2, "candle": 3, "wick": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="wick"))
    with pytest.raises(UsageError, match="no mask token") as raised:
        OBJECTIVES["masked"](Tokenizer.from_backend(backend), 0)
    assert "tokenizer.mask_token" in raised.value.hint
    objective = OBJECTIVES["masked"](Tokenizer.from_backend(backend, eos_token="[END]", mask_token="[MASK]"), 3)
    packed = text(20, 30, 0)
    packed = replace(packed, tokens_BT=packed.tokens_BT % 5)
    expected = masked(packed, 0, torch.tensor([False, False, True, True, True]), 3)
    assert torch.equal(objective(packed).inputs_BT, expected.inputs_BT)
