"""Files of instructions: one spelling each, bad records set aside, and sets that were really published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallow.data.instructions.read import read_samples
from tallow.data.instructions.samples import Conversation, Preference
from tallow.data.records import Rejected
from tallow.errors import DataError


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


ALPACA = {"instruction": "Q", "output": "A"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}


def test_a_mixed_file_is_refused_and_files_that_differ_are_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl is mixed: line 1 is one of .*alpaca.*line 2 one of .*sharegpt"):
        list(read_samples(write(tmp_path / "a.jsonl", ALPACA, SHAREGPT), Rejected()))
    with pytest.raises(DataError, match=r"is mixed.*conversations.*labelled answers"):
        list(read_samples(write(tmp_path / "a.jsonl", ALPACA, {**ALPACA, "label": True}), Rejected()))
    files = [write(tmp_path / "a.jsonl", ALPACA), write(tmp_path / "b.jsonl", SHAREGPT)]
    assert [found.form.spelling for found in read_samples(files, Rejected())] == ["alpaca", "sharegpt"]


def test_an_ambiguous_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**ALPACA, **SHAREGPT})
    with pytest.raises(DataError, match=r"a.jsonl, line 1 could be") as caught:
        list(read_samples(path, Rejected()))
    assert "spelling: sharegpt or alpaca" in caught.value.hint
    [found] = read_samples(path, Rejected(), "alpaca")
    assert found.form.spelling == "alpaca"


def test_malformed_records_are_counted_and_said_where(tmp_path: Path) -> None:
    records = [{"nothing": 1}, {**ALPACA, "output": 3}, *[ALPACA] * 30]
    rejected = Rejected(records=(kept := list[dict[str, Any]]()))
    assert len(list(read_samples(write(tmp_path / "a.jsonl", *records), rejected))) == 30
    assert (rejected.good, rejected.bad) == (30, 2)
    assert [record["line"] for record in kept] == [1, 2]
    with pytest.raises(DataError, match=r"1 of 1 records cannot be used \(first: .*line 1: has neither") as caught:
        list(read_samples(write(tmp_path / "b.jsonl", {"nothing": 1}), Rejected()))
    assert "sharegpt" in caught.value.hint


PUBLISHED = {
    "sft/codegen-instruct.json.gz": ("conversations", "alpaca", 4535, 0),
    "sft/dolly_hhrlhf_train_small.jsonl.gz": ("conversations", "prompt", 1000, 0),
    "sft/llamafactory_dpo_zh_demo.json.gz": ("preferences", "sharegpt", 300, 0),
    "sft/llamafactory_glaive_toolcall_en_demo.json.gz": ("conversations", "sharegpt", 300, 0),
    "sft/llamafactory_kto_en_demo.json.gz": ("labelled answers", "messages", 300, 0),
    "sft/rasbt_instruction-data-with-preference.json.gz": ("preferences", "alpaca", 1094, 6),
    "sft/self_instruct_seed_tasks.jsonl.gz": ("conversations", "alpaca", 175, 0),
    "hh_rlhf/harmless-base.test.jsonl.gz": ("preferences", "pairs", 2308, 4),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets(name: str, shared_data: Callable[..., Path]) -> None:
    kind, spelling, good, bad = PUBLISHED[name]
    rejected = Rejected()
    found = list(read_samples(shared_data(*name.split("/")), rejected))
    assert {(read.form.kind, read.form.spelling) for read in found} == {(kind, spelling)}
    assert (len(found), rejected.bad) == (good, bad)
    if "toolcall" in name:
        chats = [read.sample for read in found if isinstance(read.sample, Conversation) and read.sample.tools]
        assert len(chats) > 100
        assert any("tool_calls" in message for chat in chats for message in chat.messages)
    if kind == "preferences":
        for read in found:
            assert isinstance(read.sample, Preference)
            assert read.sample.chosen != read.sample.rejected
