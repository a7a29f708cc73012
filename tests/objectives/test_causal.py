from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.batch import PADDING_DOCUMENT, Packed
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal


def pack(tokens: list[list[int]], documents: list[list[int]], trainable: list[list[bool]] | None = None) -> Packed:
    mask = torch.tensor(trainable) if trainable else torch.ones(len(tokens), len(tokens[0]), dtype=torch.bool)
    return Packed(torch.tensor(tokens), torch.tensor(documents, dtype=torch.int32), mask)


def test_end_of_a_document_is_predicted_and_the_start_of_the_next_is_not() -> None:
    # document 0 is 5 6 [end], document 1 is 7 8
    example = causal(pack([[5, 6, 0, 7, 8]], [[0, 0, 0, 1, 1]]))
    assert example.inputs_BT.tolist() == [[5, 6, 0, 7]]
    assert example.targets_BT.tolist() == [[6, 0, 7, 8]]
    assert example.loss_mask_BT.tolist() == [[True, True, False, True]]
    assert example.context.positions_BT.tolist() == [[0, 1, 2, 0]]


def test_padding_and_untrainable_tokens_are_no_targets() -> None:
    packed = pack([[5, 6, 7, 0, 0]], [[0, 0, 0, PADDING_DOCUMENT, PADDING_DOCUMENT]], [[True, False, True, True, True]])
    assert causal(packed).loss_mask_BT.tolist() == [[False, True, False, False]]


def test_padding_is_told() -> None:
    pad = PADDING_DOCUMENT
    padding_BT = causal(pack([[5, 6, 7, 0, 0]] * 2, [[0, 0, 0, pad, pad], [0, 1, 1, 1, 1]])).context.padding_BT
    assert padding_BT is not None
    assert padding_BT.tolist() == [[False, False, False, True], [False] * 4]
    assert causal(pack([[5, 6, 7]], [[0, 0, 1]])).context.padding_BT is None


def test_only_rows_with_a_boundary_need_a_mask() -> None:
    pad = PADDING_DOCUMENT

    def documents(*rows: list[int]) -> torch.Tensor | None:
        context = causal(pack([[1] * len(row) for row in rows], list(rows))).context
        assert isinstance(context, SequenceContext)
        return context.documents_BT

    assert documents([0, 0, 0, 0], [3, 3, 3, pad]) is None
    assert documents([0, 0, pad, pad]) is None
    assert documents([0, 0, 0, 1]) is None  # the second document is only a target
    assert documents([0, 0, 0, 0], [0, 1, 1, 1]) is not None
    assert documents([0, pad, 0, 0]) is not None


@given(st.lists(st.integers(min_value=1, max_value=6), min_size=1, max_size=8), st.integers(min_value=0, max_value=4))
def test_mask_and_positions_are_those_of_each_document_alone(lengths: list[int], padding: int) -> None:
    documents = [number for number, length in enumerate(lengths) for _ in range(length)] + [PADDING_DOCUMENT] * padding
    if len(documents) < 2:
        return
    tokens = list(range(1, len(documents) + 1))
    example = causal(pack([tokens], [documents]))
    expected_mask = [
        documents[i] == documents[i + 1] and documents[i + 1] != PADDING_DOCUMENT for i in range(len(documents) - 1)
    ]
    expected_positions = [documents[:i].count(documents[i]) for i in range(len(documents) - 1)]
    assert example.loss_mask_BT[0].tolist() == expected_mask
    assert example.context.positions_BT[0].tolist() == expected_positions


def test_a_packed_row_gives_what_its_documents_give_alone() -> None:
    model = Decoder(DecoderConfig(vocab_size=20, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1))
    initialize(model, seed=0)
    tokens = torch.randint(1, 20, (12,), generator=torch.Generator().manual_seed(0))
    documents = [0] * 5 + [1] * 7
    example = causal(pack([tokens.tolist()], [documents]))
    with torch.no_grad():
        together = model(example.inputs_BT, example.context)[0]
        alone = [
            model(part[None], SequenceContext.plain(1, len(part)))[0]
            for part in (example.inputs_BT[0, :5], example.inputs_BT[0, 5:])
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
