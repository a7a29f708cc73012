"""Texts without the lines that C4's rules drop."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.classes import ALONE, CLOSER, LOWER, SPACE, TERMINAL, WORD, character_tables, class_places

LINE_COUNTS = (
    "lines",
    "long_word",
    "no_end",
    "few_words",
    "javascript",
    "policy",
    "lorem_ipsum",
    "bracket",
    "citations",
    "sentences",
)

LOREM_IPSUM, JAVASCRIPT, POLICY = (1 << bit for bit in range(3))
PHRASES = (
    ("lorem ipsum", LOREM_IPSUM),
    ("javascript", JAVASCRIPT),
    ("terms of use", POLICY),
    ("privacy policy", POLICY),
    ("cookie policy", POLICY),
    ("uses cookies", POLICY),
    ("use of cookies", POLICY),
    ("use cookies", POLICY),
)
QUOTES = "\"'”’»」』"
WIDE = "\u3000"
CITATION = re.compile(r"\[[0-9]*]|\[edit]|\[citation needed]")


class LineRules(NamedTuple):
    """Which lines are kept.

    Args:
        min_words: Words that it has at least; white space parts them, letters of scripts without spaces are each one.
        max_word_length: Characters that each of them has at most.
        sentence_end: It ends with the end of a sentence in any script, or with a quotation mark, but not with `...`.
        javascript: Without the word (in any case).
        policy: Without phrases such as "privacy policy".
        citations: `[1]`, `[]`, `[edit]` and `[citation needed]` are removed first.
    """

    min_words: int
    max_word_length: int
    sentence_end: bool
    javascript: bool
    policy: bool
    citations: bool


class KeptLines(NamedTuple):
    """What is left of texts, and for each text what was counted: `LINE_COUNTS`."""

    texts: pa.StringArray
    counts: dict[str, npt.NDArray[np.int64]]


def keep_lines(texts: pa.StringArray, rules: LineRules) -> KeptLines:
    """Drop lines, in the order in which C4's own code looks at them; white space at their ends goes, and empty lines.

    `lines` are those with more than white space; `long_word`, `no_end`, `few_words`, `javascript` and `policy` how many
    were dropped for that, each for the first of these; `lorem_ipsum` and `bracket` how many with that phrase or with
    `{` had not been dropped before (for long words, want of an end, few words; for brackets also JavaScript).
    `sentences` are those of the lines kept: they end with a mark that white space and no small letter follow, or none.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        kept = [_keep(text or "", rules) for text in texts.to_pylist()]
        table = np.array([counts for _, counts in kept], dtype=np.int64).reshape(len(texts), len(LINE_COUNTS))
        cleaned = pa.array([text for text, _ in kept], pa.string())
    else:
        wanted = LOREM_IPSUM | JAVASCRIPT * rules.javascript | POLICY * rules.policy
        phrases = [(phrase, kind) for phrase, kind in PHRASES if kind & wanted]
        table = np.empty((len(texts), len(LINE_COUNTS)), dtype=np.int64)
        offsets = np.empty(len(texts) + 1, dtype=np.int32)
        given = places(texts)
        room = np.empty(texts.nbytes, dtype=np.uint8)
        extension.keep_lines(
            given,
            class_places(),
            rules.min_words,
            rules.max_word_length,
            rules.sentence_end,
            rules.citations,
            QUOTES,
            phrases,
            room.ctypes.data,
            offsets.ctypes.data,
            table.ctypes.data,
        )
        data = pa.py_buffer(room[: offsets[-1]].copy())
        cleaned = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), data)
    return KeptLines(cleaned, {name: np.ascontiguousarray(table[:, column]) for column, name in enumerate(LINE_COUNTS)})


def _keep(text: str, rules: LineRules) -> tuple[str, list[int]]:
    counts: dict[str, int] = dict.fromkeys(LINE_COUNTS, 0)
    kept = []
    for whole in text.split("\n"):
        line = whole.strip()
        if not line:
            continue
        counts["lines"] += 1
        if rules.citations:
            line, removed = CITATION.subn("", line)
            line = line.strip()
            counts["citations"] += removed
        if reason := _drops(line, rules, counts):
            counts[reason] += 1
        else:
            counts["sentences"] += count_sentences(line)
            kept.append(line)
    return "\n".join(kept), list(counts.values())


def _drops(line: str, rules: LineRules, counts: dict[str, int]) -> str:
    """Why a line goes, if it does."""
    pieces = _pieces(line)
    if any(len(piece) > rules.max_word_length for piece in pieces if len(piece) > 1):
        return "long_word"
    marked = bool(line) and (bool(_kinds(line)[-1] & TERMINAL) or line[-1] in QUOTES)
    if rules.sentence_end and (not marked or line.endswith("...")):
        return "no_end"
    if len(pieces) < max(1, rules.min_words):
        return "few_words"
    small = line.encode().lower().decode()  # ASCII alone
    found = 0
    for phrase, kind in PHRASES:
        found |= kind * (phrase in small)
    counts["lorem_ipsum"] += bool(found & LOREM_IPSUM)
    if rules.javascript and found & JAVASCRIPT:
        return "javascript"
    counts["bracket"] += "{" in line
    return "policy" if rules.policy and found & POLICY else ""


def _pieces(line: str) -> list[str]:
    parted = "".join(
        f" {character} " if kind & ALONE else character
        for character, kind in zip(line, _kinds(line), strict=True)
    )  # fmt: skip
    return parted.split()


def count_sentences(line: str) -> int:
    """How many sentences a line has; what is behind the last end is one if it has letters or digits."""
    kinds = _kinds(line)
    sentences = at = 0
    is_open = False
    while at < len(line):
        if not kinds[at] & TERMINAL:
            is_open |= bool(kinds[at] & WORD)
            at += 1
            continue
        begin = at
        while at < len(line) and kinds[at] & (TERMINAL | CLOSER):
            at += 1
        wide = any(line[i] >= WIDE and kinds[i] & TERMINAL for i in range(begin, at))
        behind = at
        while behind < len(line) and kinds[behind] & SPACE:
            behind += 1
        ends = wide or behind == len(line) or (behind > at and not kinds[behind] & LOWER)
        if is_open and ends:
            sentences += 1
            is_open = False
        at = behind
    return sentences + is_open


def _kinds(line: str) -> list[int]:
    return character_tables().kinds[[ord(character) for character in line]].tolist() if line else []
