from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tallow.data.builtin import FILES, builtin
from tallow.data.config import PrepareConfig
from tallow.data.prepare import prepare
from tallow.data.read import read_records
from tallow.data.split import is_held_out
from tallow.errors import DataError
from tallow.recipe import load_recipe
from tallow.run import StageRun
from tallow.tokenizer.chat import encode_chat
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.train import TokenizerConfig, train_tokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"


@pytest.fixture(scope="module")
def diary() -> list[dict[str, Any]]:
    return [record.fields for record in read_records("tallow:pepys")]


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    return [record.fields["messages"] for record in read_records("tallow:pepys_chat")]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    yield import_module("make_builtin_data")
    sys.path.remove(str(SCRIPTS))


def test_names_with_and_without_prefix() -> None:
    for name in FILES:
        assert builtin(name) == builtin(f"tallow:{name}")
        assert builtin(name).is_file()
    with pytest.raises(DataError, match="no built-in data set tallow:nothing") as caught:
        builtin("tallow:nothing")
    assert "tallow:pepys" in caught.value.hint


def test_package_stays_small() -> None:
    assert sum(builtin(name).stat().st_size for name in FILES) < 2_500_000
    assert (builtin("pepys").parent / "SOURCE.md").is_file()


def test_every_day_has_the_same_form(diary: list[dict[str, Any]]) -> None:
    heading = re.compile(rf"(?:{MONTHS}) \d+(?:st|nd|rd|th)(?: to \d+th)?, 166\d(?: \([A-Z][^)]+\))?\. \S")
    assert len(diary) == 3413
    for day in diary:
        assert heading.match(day["text"]), day["text"][:80]
    dates = [day["date"] for day in diary]
    assert dates == sorted(set(dates))
    assert (dates[0], dates[-1]) == ("1660-01-01", "1669-05-31")
    assert diary[0]["text"].startswith("January 1st, 1660 (Lord’s day). Blessed be God, at the end of the last year")


def test_no_trace_of_notes_and_typesetting(diary: list[dict[str, Any]]) -> None:
    text = "\n".join(day["text"] for day in diary)
    assert not re.search("[\u2060\u200a\u00a0\ufeff]|  |\\t", text)
    # A note's number stood right after a word or a stop; money such as `£1 3s. 6d.` has a space there.
    assert not re.search(r"[A-Za-z’”)\]!?;][0-9]", text)
    assert not re.search(r"[a-z][.,:][0-9]", text)
    assert not re.search(r"\b\d{3},\d{4,}|(?<![£\d,])\b(1[7-9]|[2-9]\d)\d\d\b(?! |\.)", text)


def test_conversations_are_turns_of_user_and_assistant(conversations: list[list[dict[str, str]]]) -> None:
    assert 2000 <= len(conversations) <= 5000
    assert len({str(messages) for messages in conversations}) == len(conversations)
    assert sum(len(messages) > 2 for messages in conversations) > 200
    for messages in conversations:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for message in messages:
            assert message["content"].strip() == message["content"]
            assert 0 < len(message["content"]) <= 400


def test_every_conversation_fits_into_a_row_of_the_quickstart(
    conversations: list[list[dict[str, str]]], tmp_path: Path
) -> None:
    """Of the recipe's own tokenizer and its `tune.loop.sequence_length`; no conversation is above 600 characters."""
    recipe = load_recipe(SCRIPTS.parent / "recipes" / "quickstart.yaml")
    prepare(PrepareConfig(sources=("tallow:pepys",)), StageRun(tmp_path / "prepare"))
    settings = TokenizerConfig(documents=tmp_path / "prepare" / "documents", **recipe["tokenizer"])
    train_tokenizer(settings, StageRun(tmp_path / "tokenizer"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer" / "tokenizer")
    lengths = [sum(len(message["content"]) for message in messages) for messages in conversations]
    assert max(lengths) <= 600
    longest = [messages for length, messages in zip(lengths, conversations, strict=True) if length > 400]
    assert len(longest) > 100
    most = max(len(encode_chat(tokenizer, messages)[0]) for messages in longest)
    assert most <= recipe["tune"]["loop"]["sequence_length"]


def test_answers_are_of_the_diary_and_none_of_held_out_days(
    diary: list[dict[str, Any]], conversations: list[list[dict[str, str]]]
) -> None:
    answers = sorted({message["content"] for messages in conversations for message in messages[1::2]})
    held_out, learned = [], []
    for day in diary:
        digest = sha256(day["text"].encode()).digest()
        (held_out if is_held_out(digest, 0.05) else learned).append(day["text"])
    train, validation = "\n".join(learned), "\n".join(held_out)
    assert len(held_out) > 100
    # Phrases such as "So home and to bed." end many days.
    assert not [answer for answer in answers if answer in validation and answer not in train]
    sample = answers[::10]
    assert sum(answer in train for answer in sample) > 0.98 * len(sample)  # the others are about Mr. Pepys himself


def test_identity_and_daily_life_are_asked(conversations: list[list[dict[str, str]]]) -> None:
    asked = {messages[0]["content"].lower().rstrip("?.!") for messages in conversations}
    for question in ("who are you", "hello", "how is your wife", "tell me about the plague", "what did you do today"):
        assert question in asked


def test_notes_are_stripped_by_their_value(script: ModuleType) -> None:
    text = "January 1659–6047\n\nA cold.48 Gave £49 and 50s. to Gunning’s49 man. For £120,00050 more.51 In 1660 £52."
    assert script.strip_notes(text) == (
        "January 1659–60\n\nA cold. Gave £49 and 50s. to Gunning’s man. For £120,000 more. In 1660 £52."
    )


def test_months_are_cut_into_days(script: ModuleType) -> None:
    chapter = script.tidy(
        "February 1660\u2060–\u206061\n\nIt was so.\n\n"
        "February 1st (Lord’s day). Up\u2060\u200a\u2060… and out.\n\nMore.\n\n"
        "2nd, 3rd. (Sunday.) To bed.\n\n1. For a cramp.\n\n4th\u2060\u200a\u2060… rose.\n\n5th. Office day. Busy."
    )
    assert [(day.date, day.text) for day in script.entries([chapter])] == [
        ("1661-02-01", "February 1st, 1661 (Lord’s day). It was so.\n\nUp … and out.\n\nMore."),
        ("1661-02-02", "February 2nd to 3rd, 1661 (Sunday). To bed.\n\n1. For a cramp."),
        ("1661-02-04", "February 4th, 1661. … rose."),
        ("1661-02-05", "February 5th, 1661 (Office day). Busy."),
    ]


@pytest.mark.shared_data
def test_script_makes_what_is_shipped(
    shared_data: Callable[..., Path],
    script: ModuleType,
    diary: list[dict[str, Any]],
    conversations: list[list[dict[str, str]]],
) -> None:
    chapters = script.read_chapters(shared_data("corpus_english_books", "pepys_diary.en.jsonl.xz"))
    made = script.entries(script.tidy(script.strip_notes("\n\n\n".join(chapters))).split("\n\n\n"))
    assert [(entry.date, entry.text) for entry in made] == [(day["date"], day["text"]) for day in diary]
    assert [record["messages"] for record in script.conversations(made)] == conversations
