"""The usual spellings of instruction sets are recognised, and say what they mean."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.instructions.samples import Answered, Completion, Conversation, Labelled, Preference
from tallow.data.instructions.spellings import Ambiguous, Form, instances, read_sample, recognise
from tallow.errors import DataError

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
B = {"role": "assistant", "content": "B"}
SYSTEM = {"role": "system", "content": "S"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
PLAIN = Completion("Q", "A")
HH = "\n\nHuman: Q\n\nAssistant: "

CONVERSATIONS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    "OpenAI": ({"messages": [SYSTEM, Q, A]}, "messages", [SYSTEM, Q, A]),
    "system beside": ({"system": "S", "messages": [Q, A]}, "messages", [SYSTEM, Q, A]),
    "ShareGPT": ({"id": 1, "conversations": [HUMAN, GPT]}, "sharegpt", [Q, A]),
    "ShareGPT with roles": ({"conversation": [Q, A]}, "sharegpt", [Q, A]),
    "ShareGPT with a system": ({"system": "S", "conversations": [HUMAN, GPT]}, "sharegpt", [SYSTEM, Q, A]),
    "Alpaca": ({"instruction": "Q", "input": "", "output": "A"}, "alpaca", [Q, A]),
    "Alpaca in parquet": ({"instruction": "Q", "input": None, "output": "A"}, "alpaca", [Q, A]),
    "Alpaca, before": (
        {"instruction": "Q", "output": "A", "system": "S", "history": [["Q", "B"]]},
        "alpaca",
        [SYSTEM, Q, B, Q, A],
    ),
    "Dolly": (
        {"instruction": "Q", "context": "C", "response": "A", "category": "x"},
        "alpaca",
        [{"role": "user", "content": "Q\n\nC"}, A],
    ),
    "OpenOrca": ({"system_prompt": "S", "question": "Q", "response": "A"}, "question", [SYSTEM, Q, A]),
    "GSM8K": ({"question": "Q", "answer": "A"}, "question", [Q, A]),
    "TRL, conversational": ({"prompt": [Q], "completion": [A]}, "prompt", [Q, A]),
    "HH-RLHF": ({"text": HH + "A"}, "transcript", [Q, A]),
    "Guanaco": ({"text": "### Human: Q### Assistant: A"}, "transcript", [Q, A]),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name: str) -> None:
    fields, spelling, messages = CONVERSATIONS[name]
    form = recognise(fields)
    assert form == Form("conversations", spelling)
    sample = read_sample(fields, form)
    assert isinstance(sample, Conversation)
    assert list(sample.messages) == messages
    answers = [message["role"] == "assistant" for message in messages]
    assert list(sample.learned) == answers if name != "Alpaca, before" else [False] * 4 + [True]


@pytest.mark.parametrize("answer", ["completion", "response"])
def test_prompts_that_are_texts_stay_texts(answer: str) -> None:
    fields = {"prompt": "Q", answer: "A"}
    assert read_sample(fields, recognise(fields)) == PLAIN


def last(*messages: dict[str, Any]) -> Conversation:
    return Conversation(messages, (False,) * (len(messages) - 1) + (True,))


PREFERENCES: dict[str, tuple[dict[str, Any], str, Answered, Answered]] = {
    "TRL": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "prompt", PLAIN, Completion("Q", "B")),
    "TRL, conversational": ({"prompt": [Q], "chosen": [A], "rejected": [B]}, "prompt", last(Q, A), last(Q, B)),
    "TRL, implicit": ({"chosen": [Q, A], "rejected": [Q, B]}, "pairs", last(Q, A), last(Q, B)),
    "HH-RLHF": (
        {"chosen": HH + "C\n\nHuman: Q\n\nAssistant: A", "rejected": HH + "C\n\nHuman: Q\n\nAssistant: B"},
        "pairs",
        last(Q, {"role": "assistant", "content": "C"}, Q, A),
        last(Q, {"role": "assistant", "content": "C"}, Q, B),
    ),
    "HH-RLHF with a prompt": (
        {"prompt": HH, "response": "A", "chosen": "A", "rejected": "B"},
        "prompt",
        last(Q, A),
        last(Q, B),
    ),
    "UltraFeedback": (
        {"prompt": "Q", "messages": [Q, A], "chosen": [Q, A], "rejected": [Q, B], "score_chosen": 8.5},
        "prompt",
        last(Q, A),
        last(Q, B),
    ),
    "Alpaca": ({"instruction": "Q", "output": "A", "chosen": "A", "rejected": "B"}, "alpaca", last(Q, A), last(Q, B)),
    "Orca": (
        {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
        "question",
        last(SYSTEM, Q, A),
        last(SYSTEM, Q, B),
    ),
    "ShareGPT": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "B"}},
        "sharegpt",
        last(Q, A),
        last(Q, B),
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name: str) -> None:
    fields, spelling, chosen, rejected = PREFERENCES[name]
    assert recognise(fields) == Form("preferences", spelling)
    assert read_sample(fields, recognise(fields)) == Preference(chosen, rejected)


LABELLED: dict[str, tuple[dict[str, Any], Answered]] = {
    "TRL": ({"prompt": "Q", "completion": "A", "label": True}, PLAIN),
    "TRL, conversational": ({"prompt": [Q], "completion": [A], "label": 1}, last(Q, A)),
    "LLaMA-Factory": ({"messages": [Q, B, Q, A], "label": True}, last(Q, B, Q, A)),
    "LLaMA-Factory, ShareGPT": ({"conversations": [HUMAN, GPT], "kto_tag": "true"}, last(Q, A)),
    "Alpaca": ({"instruction": "Q", "output": "A", "label": True}, last(Q, A)),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_answers(name: str) -> None:
    fields, answer = LABELLED[name]
    assert recognise(fields).kind == "labelled answers"
    assert read_sample(fields, recognise(fields)) == Labelled(answer, True)
    bad = {key: 0 if key in ("label", "kto_tag") else value for key, value in fields.items()}
    assert read_sample(bad, recognise(bad)) == Labelled(answer, False)


CALL = {"name": "add", "arguments": {"a": 1}}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}],
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
GIVEN = {"role": "tool", "content": "3"}
AS_JSON = {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("turns", "tools"),
    [
        ([Q, {**CALLED, "content": None, "tool_calls": [{"type": "function", "function": AS_JSON}]}, GIVEN, A], [TOOL]),
        ([Q, {"role": "assistant", "function_call": AS_JSON}, {"role": "function", "content": "3"}, A], [TOOL]),
        (
            [HUMAN, {"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "3"}, GPT],
            json.dumps([TOOL["function"]]),
        ),
        (
            [HUMAN, {"from": "function_call", "value": json.dumps([CALL])}, {"from": "tool", "value": "3"}, GPT],
            [json.dumps(TOOL)],
        ),
    ],
    ids=["OpenAI", "OpenAI's older", "LLaMA-Factory", "a list of calls"],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_tools(name: str, turns: list[dict[str, Any]], tools: Any) -> None:
    fields = {name: turns, "tools": tools}
    sample = read_sample(fields, recognise(fields))
    assert isinstance(sample, Conversation)
    question, call, given_back, answer = sample.messages
    assert (question, answer) == (Q, A)
    assert given_back == {**GIVEN, "tool_call_id": "call00001"}
    assert {key: value for key, value in call.items() if value} == CALLED
    assert sample.learned == (False, True, False, True)
    assert sample.tools == (TOOL,)


def test_ids_of_calls_are_kept_or_given_in_their_order() -> None:
    calls = [{"id": "x", "function": CALL}, {"function": CALL}, {"id": "y", "function": CALL}]
    given = [{**GIVEN, "tool_call_id": "y"}, GIVEN, GIVEN]
    fields = {"messages": [Q, {"role": "assistant", "tool_calls": calls}, *given, A]}
    sample = read_sample(fields, recognise(fields))
    assert isinstance(sample, Conversation)
    assert [call["id"] for call in sample.messages[1]["tool_calls"]] == ["x", "call00002", "y"]
    assert [message["tool_call_id"] for message in sample.messages[2:5]] == ["y", "x", "call00002"]


def test_the_weight_of_a_message_says_whether_it_is_learned() -> None:
    fields = {"messages": [Q, {**B, "weight": 0}, Q, {**A, "weight": 1}]}
    assert read_sample(fields, recognise(fields)) == Conversation((Q, B, Q, A), (False, False, False, True))


def test_an_instruction_with_several_instances_is_several_records() -> None:
    fields = {"id": "seed_task_0", "instruction": "Q", "instances": [{"input": "", "output": "A"}, {"output": "B"}]}
    samples = [read_sample(part, recognise(part)) for part in instances(fields)]
    assert samples == [last(Q, A), last(Q, B)]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"messages": [Q, A], "conversations": [HUMAN, GPT]}, ("messages", "sharegpt")),
        ({"messages": [Q, A], "prompt": "Q", "completion": "A"}, ("messages", "prompt")),
        ({"instruction": "Q", "question": "Q", "response": "A"}, ("alpaca", "question")),
    ],
)
def test_what_could_be_several_spellings_is_refused_unless_it_is_said_which(
    fields: dict[str, Any], names: tuple[str, ...]
) -> None:
    with pytest.raises(Ambiguous) as caught:
        recognise(fields)
    assert all(name in caught.value.message and name in caught.value.hint for name in names)
    for name in names:
        assert recognise(fields, name) == Form("conversations", name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has neither .*it has nothing"),
        ({"text": "x", "messages": None}, "has neither .*it has text"),
        ({"prompt": "x"}, "has neither .*it has prompt"),
        ({"prompt": "x", "completion": None}, "has neither .*it has prompt"),
        ({"prompt": 1, "completion": "x"}, "prompt is no list"),
        ({"prompt": "x", "completion": ["y"]}, "completion is no string"),
        ({"messages": "x"}, "messages is no list"),
        ({"messages": []}, "messages is no list, or an empty one"),
        ({"messages": [Q]}, "no assistant message"),
        ({"messages": [Q, {**A, "weight": 0}]}, "no assistant message"),
        ({"messages": [Q, "Hi"]}, "message 1 has no role"),
        ({"messages": [{"role": 1, "content": "x"}, Q]}, "message 0 has no role"),
        ({"messages": [Q, {"role": "assistant"}]}, "message 1 has no content"),
        ({"messages": [{"role": "user", "content": None}, Q]}, "message 0 has no content"),
        ({"messages": [Q, {"role": "assistant", "content": 4}]}, "the content of message 1 is no text"),
        ({"messages": [Q, {"role": "assistant", "tool_calls": "x"}]}, "tool_calls of message 1"),
        ({"messages": [Q, {"role": "assistant", "tool_calls": [{"name": 1}]}]}, "a call in message 1 has no name"),
        ({"messages": [Q, A], "tools": "[{"}, "tools is not JSON"),
        ({"messages": [Q, A], "tools": [{"type": "function"}]}, "a tool has no name"),
        ({"conversations": [{"from": "owl", "value": "x"}, GPT]}, "from owl, whom nobody knows"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": 1}]}, "value of message 1 is no text"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "add(1)"}]}, "message 1 is not JSON"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "[]"}]}, "message 1 calls nothing"),
        ({"instruction": "Q", "output": "A", "response": "B"}, "two answers, output and response"),
        ({"instruction": ["Q"], "output": "A"}, "instruction is no string"),
        ({"instruction": "Q", "output": "A", "history": ["x"]}, "history is no list of pairs"),
        ({"chosen": "A", "rejected": "B"}, "chosen is a text without what it answers"),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "prefers an answer to itself"),
        ({"chosen": HH, "rejected": HH + "B"}, "no assistant message"),
        ({"text": "\n\nHuman: \n\nAssistant: A"}, "an empty turn"),
    ],
)
def test_malformed_records_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_sample(fields, recognise(fields))


NAMES = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "question", "answer",
         "chosen", "rejected", "label", "tools", "history", "system", "text", "instances")  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "Q", HH + "A", "[1]", '{"name": "f"}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "name"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_whatever_a_record_holds_it_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(DataError):
        for part in instances(fields):
            read_sample(part, recognise(part))
