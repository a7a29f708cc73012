"""What is learned of a record, which sets are refused, and packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import DataError
from tallow.models.blocks.context import SequenceContext
from tallow.objectives.causal import causal
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tune.examples import (
    PADDING,
    Example,
    check_learned,
    encode_record,
    keep_fitting,
    pack,
    show,
    to_packed,
)

from .conftest import tiny_model


def learned_text(example: Example, tokenizer: Tokenizer) -> str:
    ids = [token for token, learned in zip(example.ids, example.learned, strict=True) if learned]
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_of_a_conversation_the_answers_and_their_ends_are_learned(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And <|im_end|>?"},
        {"role": "assistant", "content": "Well."},
    ]
    example = encode_record({"messages": messages}, tokenizer, "record 1")
    assert learned_text(example, tokenizer) == "Hi.<|im_end|>Well.<|im_end|>"
    [end] = tokenizer.encode("<|im_end|>", parse_special=True)
    assert example.ids.count(end) == 5, "what the user spelled is no control token"


def test_of_a_prompt_with_its_completion_the_completion_and_the_end_are_learned(tokenizer: Tokenizer) -> None:
    example = encode_record({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer, "record 1")
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == "2 + 2 = 4<|endoftext|>"
    assert learned_text(example, tokenizer) == " 4<|endoftext|>"


USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "a.jsonl, line 7 has neither .*it has nothing"),
        ({"text": "x", "messages": None}, "line 7 has neither .*it has text"),
        ({"prompt": "x"}, "line 7 has neither .*it has prompt"),
        ({"prompt": "x", "completion": None}, "line 7 has neither .*it has prompt"),
        ({"prompt": 1, "completion": "x"}, "line 7: prompt is no string"),
        ({"prompt": "x", "completion": ["y"]}, "line 7: completion is no string"),
        ({"messages": "x"}, "line 7: messages is no list"),
        ({"messages": []}, "line 7: messages is no list, or an empty one"),
        ({"messages": [USER]}, "line 7 has no assistant message"),
        ({"messages": [USER, "Hi"]}, "line 7: message 1 has no role"),
        ({"messages": [{"role": 1, "content": "x"}, USER]}, "line 7: message 0 has no role"),
        ({"messages": [USER, {"role": "assistant"}]}, "line 7: message 1 has no content"),
        ({"messages": [{"role": "user", "content": None}, USER]}, "line 7: message 0 has no content"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "line 7: the content of message 1 is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "line 7: part 0 of the content of mess"),
    ],
)
def test_other_records_are_refused_by_name(tokenizer: Tokenizer, record: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode_record(record, tokenizer, "a.jsonl, line 7")
    assert caught.value.hint


def test_sets_that_teach_nothing_or_no_end_are_refused() -> None:
    with pytest.raises(DataError, match="no answer token"):
        check_learned([Example([1, 2], [False, False])], [2])
    with pytest.raises(DataError, match="end token is never trained"):
        check_learned([Example([1, 3, 2], [False, True, False])], [2])
    with pytest.raises(DataError, match="no answer token"):
        check_learned([Example([1, 2], [False, True])], [2])
    check_learned([Example([1, 3, 2], [False, True, True])], [2])


def test_examples_that_do_not_fit_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    short, long = Example([1] * 6, [True] * 6), Example([1] * 9, [True] * 9)
    assert keep_fitting([short, long], 5) == [short]
    said = capsys.readouterr().err
    assert "left out 1 of 2 examples: too long for a sequence_length of 5 (a tune.loop.sequence_length of 8" in said
    assert keep_fitting([short, long], 8) == [short, long]
    assert not capsys.readouterr().err
    with pytest.raises(DataError, match="sequence_length of 5") as caught:
        keep_fitting([long], 5)
    assert "8 or more" in caught.value.hint
    with pytest.raises(DataError, match="empty"):
        keep_fitting([], 5)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_keeps_every_example_whole_and_fills_rows(lengths: list[int]) -> None:
    examples = [Example([index] * length, [True] * length) for index, length in enumerate(lengths)]
    rows = pack(examples, 20)
    assert sorted(example.ids[0] for row in rows for example in row) == list(range(len(lengths)))
    fills = sorted(sum(map(len, row)) for row in rows)
    assert fills[-1] <= 20
    if len(fills) > 1:
        assert fills[0] + fills[1] > 20, "two rows that would fit into one"
    packed = to_packed(rows, 20, pad_id=0)
    assert int((packed.documents_BT != PADDING).sum()) == sum(lengths)
    assert int(packed.trainable_BT.sum()) == sum(lengths)


def test_packed_examples_score_as_alone(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer.vocab_size).eval()
    examples = [
        encode_record({"prompt": f"{n} + 1 =", "completion": f" {n + 1}"}, tokenizer, "record") for n in (3, 41, 500)
    ]
    (row,) = pack(examples, 60)
    together = causal(to_packed([row], 60, pad_id=0))
    with torch.no_grad():
        logits_TV = model.logits(model(together.inputs_BT, together.context))[0]
        start = 0
        for example in row:
            ids = torch.tensor([example.ids])
            alone_TV = model.logits(model(ids, SequenceContext.plain(1, len(example))))[0]
            end = start + len(example)
            torch.testing.assert_close(logits_TV[start:end], alone_TV[: len(logits_TV[start:end])], atol=1e-5, rtol=0)
            start = end
    targets = together.targets_BT[together.loss_mask_BT].tolist()
    assert targets == [
        token for example in row for token, learned in zip(example.ids, example.learned, strict=True) if learned
    ]


def test_the_shown_example_marks_what_is_learned(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    show(encode_record({"prompt": "Q: [b]", "completion": " A"}, tokenizer, "record"), tokenizer)
    assert "Q: [b]⟦ A<|endoftext|>⟧" in capsys.readouterr().err
