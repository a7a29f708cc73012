"""How prompts are written, answers read, and instructions filtered."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.synthetic.filters import is_copied, usable_instances, why_not
from tallow.data.synthetic.prompts import (
    Instance,
    Task,
    ask_for_instances,
    ask_for_instructions,
    ask_for_kind,
    ask_for_labelled_instances,
    read_instances,
    read_instructions,
    read_kind,
    read_labelled_instances,
)
from tallow.data.synthetic.rouge import Similarity, rouge_l, words

ADD = Task("Add the numbers:", False, (Instance("1, 2", "3"), Instance("", "0")))
MOOD = Task("Name the mood.", True, (Instance("What joy!", "good"), Instance("Alas.", "bad")))


def reference(text: str, other: str) -> float:
    """By the definition."""
    a, b = words(text), words(other)

    @cache
    def common(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + common(i + 1, j + 1) if a[i] == b[j] else max(common(i + 1, j), common(i, j + 1))

    return 2 * common(0, 0) / (len(a) + len(b)) if a and b else 0.0


sentences = st.lists(st.sampled_from(["a", "b", "c", "蠟", "燭"]), max_size=9).map(" ".join)


@given(text=sentences, other=sentences)
def test_rouge_l_is_by_its_definition(text: str, other: str) -> None:
    assert rouge_l(text, other) == pytest.approx(reference(text, other))


@given(texts=st.lists(sentences, max_size=6), text=sentences, threshold=st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_what_is_too_much_alike_is_found(texts: list[str], text: str, threshold: float) -> None:
    expected = any(rouge_l(text, other) >= threshold for other in texts)
    assert Similarity(texts).reaches(text, threshold) == expected


def test_words_are_those_of_any_script() -> None:
    assert words("Don't STOP, nº 7! Ещё 蠟燭") == ["don", "t", "stop", "nº", "7", "ещё", "蠟", "燭"]


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        (" Add 1.\n10. Sing\n  a song:\n11. Rhyme.", True, ["Add 1.", "Sing a song", "Rhyme."]),
        (" Add 1.\n10. Sing a song", False, ["Add 1."]),
        ("9. Add 1.5 and 2.\n10) Sing\n\n11: Rhyme.", True, ["Add 1.5 and 2.", "Sing", "Rhyme."]),
        ("Task 9: Add.\nTask 10: Sing.", True, ["Add.", "Sing."]),
        ("1. 9. Add 1.\n2. 10) 3. Sing.\n3. 5.2 and 6. are\n4. 8.", True, ["Add 1.", "Sing.", "5.2 and 6. are", "8."]),
        ("", True, []),
        ("Hm.", False, []),
    ],
)
def test_lists_are_read(answer: str, ended: bool, expected: list[str]) -> None:
    assert read_instructions(answer, ended, 8) == expected


def test_lists_are_written_to_be_gone_on_with() -> None:
    prompt = ask_for_instructions(["Add the\nnumbers:", "Sing."], 16)
    assert prompt.endswith("one on each line:\n1. Add the numbers\n2. Sing.\n3.")


def test_what_is_shown_reads_as_it_was() -> None:
    """An answer in the form of what was shown is understood."""
    _, _, shown = ask_for_instances("Sing.", [ADD]).partition("Task: Add the numbers\n")
    assert read_instances(shown.split("\n\nTask:")[0], True) == list(ADD.instances)
    _, _, shown = ask_for_labelled_instances("Sing.", [MOOD]).partition("Task: Name the mood.\n")
    assert read_labelled_instances(shown.split("\n\nTask:")[0], True) == list(MOOD.instances)
    prompt = ask_for_kind("Sing.", [ADD, MOOD])
    assert prompt.endswith(
        "Task: Add the numbers\nClassification: No\n\nTask: Name the mood.\nClassification: Yes\n\n"
        "Task: Sing.\nClassification:"
    )
    assert [read_kind(text) for text in (" Yes", "**Yes**", "No.", "", "The answer is Yes")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        ("Input: a\nOutput: b\n\nExample 2\nInput: c\nOutput: d", True, [Instance("a", "b"), Instance("c", "d")]),
        ("Input: a\nOutput: b\nExample 2\nInput: c\nOutp", False, [Instance("a", "b")]),
        ("Output: b\nb", True, [Instance("", "b\nb")]),
        ("Input: None\nOutput: b", True, [Instance("", "b")]),
        ("just so", True, [Instance("", "just so")]),
        ("Input: a", True, [Instance("a", "")]),
        ("Input: a\nOutput: b, or Output: c\nOutput: d", True, [Instance("a", "b, or Output: c")]),
        ("", True, []),
    ],
)
def test_instances_are_read(answer: str, ended: bool, expected: list[Instance]) -> None:
    assert read_instances(answer, ended) == expected


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        (" good\nInput: a\nClass label: bad\nInput: b", True, [Instance("a", "good"), Instance("b", "bad")]),
        ("Class label: good\nInput: a\nClass label: b", False, [Instance("a", "good")]),
        (" good", True, [Instance("", "good")]),
    ],
)
def test_labels_are_read(answer: str, ended: bool, expected: list[Instance]) -> None:
    assert read_labelled_instances(answer, ended) == expected


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Name three prime numbers.", None),
        ("Add them up", "too short"),
        ("word " * 151, "too long"),
        ("x" * 4000 + " a b c", "too long"),
        ("Describe the picture of a cat.", "beyond text"),
        ("Explain what photographs are to children.", None),
        ("Write a program that sorts numbers.", "a program"),
        ("- name three prime numbers", "begins with punctuation"),
        ("Напиши письмо своей старой тётке.", "not ASCII"),
        ("列出三個質數", "not ASCII"),
    ],
)
def test_instructions_are_filtered(instruction: str, reason: str | None) -> None:
    assert why_not(instruction) == reason
    if reason == "not ASCII":
        assert why_not(instruction, ascii_only=False) is None


def test_instances_are_filtered() -> None:
    good = Instance("a", "b")
    found = [
        good,
        good,
        Instance("c", ""),
        Instance("d", "d"),
        Instance("e", "as follows:"),
        Instance("f:", "x"),
        Instance("g", "1"),
        Instance("g", "2"),
        Instance("", "one"),
        Instance("", "another"),
    ]
    assert usable_instances(found) == [good, Instance("", "one")]


def test_what_was_shown_is_no_instance() -> None:
    long = "The candle burns in the window all night."
    shown = [ADD, Task("Sum it up.", False, (Instance(long, "It burns."),))]
    for copied in (
        Instance(long, "Light."),
        Instance("x", long),
        Instance("", long[:30]),
        Instance(f"{long[:30]}a book.", "y"),
    ):
        assert is_copied(copied, shown)
    for own in (
        Instance("1, 2", "3"),
        Instance("Another", long[5:]),
        Instance("", long[:29]),
        Instance("", "It burns."),
    ):
        assert not is_copied(own, shown)
