"""Each rule on texts just within its bound and just beyond it."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tallow.data.quality.c4 import C4Lines, drop_lines
from tallow.data.quality.families import RULES, QualityRules, decide, measure
from tallow.data.quality.gopher import GopherRules
from tallow.errors import DataError


def repeated(n: int, share: float, beyond: int, spaces: int) -> str:
    """A text in which n words of two letters stand twice, and have just this share of the characters."""
    gram = " ".join("abcdefghij"[i] * 2 for i in range(n))
    characters = 2 * (2 * n + n - 1) if spaces else 2 * n
    begin = f"{gram} x {gram} y "
    return begin + "z" * (math.ceil(round(characters / share, 6)) - beyond - len(begin))


def many(words: int) -> str:
    return " ".join(["word"] * words)


def lines(*counts: tuple[str, int]) -> str:
    """So many lines of each kind, which differ by their number."""
    return "\n".join(line.replace("%", str(number)) for line, count in counts for number in range(count))


CASES = {
    "repetition.max_duplicate_lines": (lines(("a%", 7), ("a0", 3)), lines(("a%", 6), ("a0", 4))),
    "repetition.max_duplicate_paragraphs": (
        lines(("a%\nb\n", 7), ("a0\nb\n", 3)),
        lines(("a%\nb\n", 6), ("a0\nb\n", 4)),
    ),
    "repetition.max_duplicate_line_characters": tuple(f"{'x' * 20}\n{'x' * 20}\n{'y' * n}" for n in (58, 57)),
    "repetition.max_duplicate_paragraph_characters": tuple(f"{'x' * 20}\n\n{'x' * 20}\n\n{'y' * n}" for n in (56, 55)),
    **{
        f"repetition.max_top_{n}_gram_characters": (repeated(n, share, 0, 1), repeated(n, share, 1, 1))
        for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))
    },
    **{
        f"repetition.max_duplicate_{n}_gram_characters": (repeated(n, share, 0, 0), repeated(n, share, 1, 0))
        for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    },
    "gopher.min_words": (many(50) + " . . .", many(49) + " . . ."),
    "gopher.max_words": (many(100_000), many(100_001)),
    "gopher.min_mean_word_length": ("abc, abc", "abc, abc ab"),
    "gopher.max_mean_word_length": ("a" * 10, "a" * 10 + " " + "a" * 11),
    "gopher.max_hashes": ("#" + many(9), "#" + many(8)),
    "gopher.max_ellipses": ("… " + many(9), "... " + many(8)),
    "gopher.max_bullet_lines": (lines(("- a", 5), (" • b", 4), ("c", 1)), lines(("- a", 5))),
    "gopher.max_ellipsis_lines": (lines(("a...", 2), ("b… ", 1), ("c", 7)), lines(("a...", 4), ("c", 6))),
    "gopher.min_letter_words": (many(8) + ", 1. ...", many(7) + ", 1. ..."),
    "gopher.min_letter_tokens": (many(8) + " 1.", many(7) + " 1."),
    "gopher.min_stop_words": ("the cat of", "the the The off cat"),
    "c4.max_lorem_ipsum": ("Lorem et ipsum dolor.", "Here LOREM IPSUM dolor."),
    "c4.max_brackets": ("A (bracket) is here.", "A {bracket} is here."),
    "c4.min_sentences": ("One is here. " * 5, "One is here. " * 4),
    "fineweb.min_terminal_lines": (lines(("a.", 3), ("b%", 22)), lines(("a.", 2), ("b%", 15))),
    "fineweb.max_short_lines": (
        lines(("a" * 28 + "%", 67), ("a" * 31, 33)),
        lines(("a" * 28 + "%", 68), ("a" * 31, 32)),
    ),
    "fineweb.max_duplicate_line_characters": ("x\nx\n" + "y" * 98, "x\nx\n" + "y" * 97),
    "fineweb.max_newlines": ("a\nb\nc\nd e f g h i j", "a\nb\nc\nd e f g h i"),
}  # fmt: skip


ALL_RULES = QualityRules(gopher=GopherRules(min_letter_tokens=0.8))


@pytest.mark.parametrize("rule", CASES)
def test_bounds(rule: str) -> None:
    verdicts = decide(measure(pa.array(CASES[rule])), ALL_RULES)
    assert verdicts.drops_DR[:, verdicts.rules.index(rule)].tolist() == [False, True]


def test_all_rules_are_tested_and_have_settings() -> None:
    names = [f"{family}.{rule.name}" for family, rules in RULES.items() for rule in rules]
    assert sorted(CASES) == sorted(names)
    assert list(decide(measure(pa.array(["a"])), ALL_RULES).rules) == names
    defaults = QualityRules().model_dump()
    assert sorted(f"{family}.{name}" for family, rules in defaults.items() for name in rules) == sorted(names)


def test_misspelt_rules_are_errors() -> None:
    with pytest.raises(ValidationError):
        QualityRules.model_validate({"gopher": {"min_word": 3}})
    with pytest.raises(ValidationError):
        QualityRules.model_validate({"gofer": {}})
    with pytest.raises(ValidationError):
        C4Lines.model_validate({"java": False})


def test_decisions_need_no_texts() -> None:
    columns = measure(pa.array(["", "the cat of " + many(60), many(60)]))
    only = QualityRules(repetition=None, c4=None, fineweb=None)
    verdicts = decide(columns, only)
    assert verdicts.first().to_pylist() == ["gopher.min_words", None, "gopher.min_stop_words"]
    assert verdicts.counts()["gopher.min_words"] == {"first": 1, "all": 1, "alone": 0}
    assert verdicts.counts()["gopher.min_stop_words"] == {"first": 1, "all": 2, "alone": 1}
    loose = QualityRules(gopher=GopherRules(min_stop_words=None), repetition=None, c4=None, fineweb=None)
    assert decide(columns, loose).first().to_pylist() == ["gopher.min_words", None, None]
    none = decide(columns, QualityRules(gopher=None, repetition=None, c4=None, fineweb=None))
    assert none.first().to_pylist() == [None] * 3
    assert none.counts() == {}
    with pytest.raises(DataError, match=r"gopher\.words"):
        decide({"c4.sentences": np.zeros(3)}, only)


def test_rules_are_for_languages() -> None:
    columns = measure(pa.array(["中国人在这里。" * 10] * 4))
    rules = QualityRules(repetition=None, c4=None, fineweb=None)
    languages = pa.array(["zh-Hans", "en", None, "ru"])
    assert decide(columns, rules, languages).first().to_pylist() == [
        None,
        "gopher.min_mean_word_length",
        "gopher.min_mean_word_length",
        "gopher.min_mean_word_length",
    ]
    stop_words = QualityRules(
        repetition=None,
        c4=None,
        fineweb=None,
        gopher=GopherRules(min_mean_word_length=None),
    )
    assert decide(columns, stop_words, languages).first().to_pylist() == [None, "gopher.min_stop_words", None, None]
    assert decide(columns, stop_words).first().to_pylist() == ["gopher.min_stop_words"] * 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Three words here.", None),
        ("Two words.", "few_words"),
        ("three 中 。", None),
        ("no end of this", "no_end"),
        ("an ellipsis is none...", "no_end"),
        ("he said “it is”", None),
        ("это конец строки?", None),
        ("这是中文。", None),
        ("a word of " + "x" * 999 + ".", None),
        ("a word of " + "x" * 1000 + ".", "long_word"),
        ("Please enable JavaScript to see.", "javascript"),
        ("See our Privacy Policy here.", "policy"),
        ("We use no cookies here.", None),
    ],
)
def test_lines(line: str, reason: str | None) -> None:
    kept = drop_lines(pa.array([f"First line it is.\n\n {line}\t\nThe last of lines."]), C4Lines())
    assert (line in kept.texts[0].as_py().split("\n")) == (reason is None)
    dropped = [name for name in ("long_word", "no_end", "few_words", "javascript", "policy") if kept.counts[name][0]]
    assert dropped == ([reason] if reason else [])


def test_citations_and_settings_of_lines() -> None:
    texts = pa.array(
        ["It is so.[1] And[edit] this[citation needed] too [note].[23]", "A heading\nA sentence it is.", None]
    )
    assert drop_lines(texts, C4Lines()).texts.to_pylist() == ["It is so. And this too [note].", "A sentence it is.", ""]
    assert drop_lines(texts, C4Lines()).counts["citations"].tolist() == [4, 0, 0]
    fineweb = C4Lines(sentence_end=False, min_words=0, citations=False)
    assert drop_lines(texts, fineweb).texts.to_pylist() == [texts[0].as_py(), texts[1].as_py(), ""]
