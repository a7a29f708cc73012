"""What is learned of a record, which sets are refused, and packing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.instructions.samples import Completion, Conversation
from tallow.data.instructions.spellings import read_sample, recognise
from tallow.data.reading.settings import ReadSettings
from tallow.data.records import Rejected
from tallow.errors import DataError
from tallow.models.blocks.context import SequenceContext
from tallow.objectives.causal import causal
from tallow.tokenizer.chat import CHATML, ChatTemplate
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tune.examples import (
    PADDING,
    Example,
    check_learned,
    encode_answered,
    keep_fitting,
    pack,
    read_examples,
    show,
    to_packed,
)

from .conftest import tiny_model


def learned_text(example: Example, tokenizer: Tokenizer) -> str:
    ids = [token for token, learned in zip(example.ids, example.learned, strict=True) if learned]
    return tokenizer.decode(ids, skip_special_tokens=False)


def encode(record: dict[str, Any], tokenizer: Tokenizer) -> Example:
    sample = read_sample(record, recognise(record))
    assert isinstance(sample, Conversation | Completion)
    return encode_answered(sample, tokenizer)


def test_of_a_conversation_the_answers_and_their_ends_are_learned(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And <|im_end|>?"},
        {"role": "assistant", "content": "Well."},
    ]
    example = encode({"messages": messages}, tokenizer)
    assert learned_text(example, tokenizer) == "Hi.<|im_end|>Well.<|im_end|>"
    [end] = tokenizer.encode("<|im_end|>", parse_special=True)
    assert example.ids.count(end) == 5, "what the user spelled is no control token"
    unweighted = [{**message, "weight": int(index > 2)} for index, message in enumerate(messages)]
    assert learned_text(encode({"messages": unweighted}, tokenizer), tokenizer) == "Well.<|im_end|>"


def test_of_a_prompt_with_its_completion_the_completion_and_the_end_are_learned(tokenizer: Tokenizer) -> None:
    example = encode({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer)
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == "2 + 2 = 4<|endoftext|>"
    assert learned_text(example, tokenizer) == " 4<|endoftext|>"


def test_calls_of_tools_are_learned_and_what_they_give_is_not(tokenizer: Tokenizer) -> None:
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 2}}'}
    turns = [
        {"from": "human", "value": "1 + 2?"},
        call,
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3."},
    ]
    example = encode({"conversations": turns, "tools": '[{"name": "add", "parameters": {}}]'}, tokenizer)
    text = tokenizer.decode(example.ids, skip_special_tokens=False)
    assert '{"type": "function", "function": {"name": "add", "parameters": {}}}' in text
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'
    assert learned_text(example, tokenizer) == written + "It is 3.<|im_end|>"


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}


def test_each_file_is_shown_with_its_spelling_and_bad_records_are_counted(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = {"messages": [{"role": "user", "content": "?"}]}
    paths = [
        write(tmp_path / "a.jsonl", chat("A"), silent, chat("B"), {"text": "C"}),
        write(tmp_path / "b.jsonl", {"instruction": "Add", "input": "1, 2", "output": "3"}),
    ]
    rejected = Rejected()
    settings = ReadSettings(max_bad_fraction=0.5)
    examples = [example for example, _ in read_examples(paths, tokenizer, rejected, settings=settings)]
    texts = [learned_text(example, tokenizer) for example in examples]
    assert texts == ["A<|im_end|>", "B<|im_end|>", "3<|im_end|>"]
    assert (rejected.good, rejected.bad) == (3, 2)
    assert "a.jsonl, line 2: has no assistant message" in rejected.first
    said = capsys.readouterr().err
    assert "a.jsonl: conversations, spelled as OpenAI's messages (messages)" in said
    assert "b.jsonl: conversations, spelled as Alpaca's instructions (alpaca)" in said
    assert said.count("one example") == 2
    assert "Add\n\n1, 2" in said


def test_what_the_template_refuses_is_set_aside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    refusing = "{% if messages[0].content == '!' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    strict = Tokenizer(tokenizer.backend, tokenizer.special_tokens, ChatTemplate(refusing, tokenizer.special_tokens))
    shouted = {"messages": [{"role": "user", "content": "!"}, {"role": "assistant", "content": "A"}]}
    rejected = Rejected()
    path = write(tmp_path / "a.jsonl", *[chat("A")] * 10, shouted)
    assert len(list(read_examples([path], strict, rejected))) == 10
    assert "line 11: the chat template refuses this conversation: no" in rejected.first
    bare = Tokenizer(tokenizer.backend, tokenizer.special_tokens)
    with pytest.raises(DataError, match="no chat template, which conversations need"):
        list(read_examples([path], bare, Rejected()))
    with pytest.raises(DataError, match="no end token"):
        list(
            read_examples(
                [write(tmp_path / "b.jsonl", {"prompt": "a", "completion": "b"})],
                Tokenizer(tokenizer.backend, {}),
                Rejected(),
            )
        )


def test_better_answers_are_learned_where_it_is_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A"}]
    judged = [{"messages": turns, "label": label} for label in (True, False)]
    for path, expected in (
        (write(tmp_path / "a.jsonl", pair), ["good<|endoftext|>"]),
        (write(tmp_path / "b.jsonl", *judged), ["A<|im_end|>"]),
    ):
        with pytest.raises(DataError, match="does not learn") as caught:
            list(read_examples([path], tokenizer, Rejected()))
        assert "tune.learn_chosen" in caught.value.hint
        examples = read_examples([path], tokenizer, Rejected(), learn_chosen=True)
        assert [learned_text(example, tokenizer) for example, _ in examples] == expected


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
    examples = [encode_answered(Completion(f"{n} + 1 =", f" {n + 1}"), tokenizer) for n in (3, 41, 500)]
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
    show(encode_answered(Completion("Q: [b]", " A"), tokenizer), tokenizer)
    assert "Q: [b]⟦ A<|endoftext|>⟧" in capsys.readouterr().err
    show(encode_answered(Completion("Q: " + 2_000 * "b", " A"), tokenizer), tokenizer)
    assert "bb … 1,003 characters … bb" in capsys.readouterr().err
