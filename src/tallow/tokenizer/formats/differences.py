"""In what a tokenizer differs from what the file of another program can say, in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tallow.errors import UsageError
from tallow.kernels.text.bpe import SPLIT_RULES
from tallow.tokenizer.spelling import byte_letters

SPACE = "▁"
KINDS = {
    "BPE": "BPE (merges)",
    "WordPiece": "WordPiece (the longest token that fits)",
    "Unigram": "Unigram (the most probable tokens)",
}


def refusal(cannot: str, differences: Sequence[str]) -> UsageError:
    """What is said of a tokenizer that a file cannot hold.

    Args:
        cannot: That, such as "RWKV has no such tokenizer".
        differences: Why not.
    """
    return UsageError(f"{cannot}: {'; '.join(differences)}", "write tokenizer.json, which holds any")


def wrong_kind(state: Mapping[str, Any], wanted: Collection[str]) -> Iterator[str]:
    """Whether tokens are found in one of these ways, such as `BPE`."""
    name = state["model"]["type"]
    if name not in wanted:
        yield f"it is {KINDS.get(name, name)}, not {' or '.join(KINDS[each] for each in wanted)}"


def not_of_bytes(state: Mapping[str, Any]) -> Iterator[str]:
    """Whether tokens are made of something else than all bytes, spelled in GPT-2's letters."""
    if not _is_of_bytes(state):
        rare = ", rare ones said in bytes" if state["model"].get("byte_fallback") else ""
        yield f"its tokens are made of characters{rare}, not of bytes"


def not_of_characters(state: Mapping[str, Any]) -> Iterator[str]:
    """Whether tokens are made of bytes."""
    if _is_of_bytes(state):
        yield "its tokens are made of bytes, not of characters"


def normalized(state: Mapping[str, Any]) -> Iterator[str]:
    """Whether text is changed before all else."""
    if state["normalizer"] is not None:
        steps = state["normalizer"].get("normalizers", [state["normalizer"]])
        escaped = any(step.get("pattern") == {"String": SPACE} for step in steps)
        yield "it escapes a ▁ that is in the text" if escaped else f"it changes text first ({_named(steps)})"


def cut_otherwise(pattern: str | None, wanted: str, program: str) -> Iterator[str]:
    """Whether text is cut by another rule than that of a program.

    Args:
        pattern: By which it is cut; None: that is none.
        wanted: That of the program, one of `SPLIT_RULES`.
        program: Whose name is said.
    """
    if pattern is not None and pattern != wanted:
        yield f"it cuts text by {_rule(pattern)}, not by {program}'s, with {_digits(wanted)}"


def cut(state: Mapping[str, Any]) -> Iterator[str]:
    """Whether text is cut before tokens are sought."""
    found = state["pre_tokenizer"]
    if found is None:
        return
    steps = found.get("pretokenizers", [found])
    patterns = [step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split"]
    by = _rule(patterns[0]) if patterns else _named(steps)
    yield f"it cuts text into words before it looks for tokens (by {by})"


def _is_of_bytes(state: Mapping[str, Any]) -> bool:
    known = vocabulary_of(state)
    return all(letter in known for letter in byte_letters())


def vocabulary_of(state: Mapping[str, Any]) -> set[str]:
    """All tokens of a model."""
    vocabulary = state["model"].get("vocab", ())
    return set(vocabulary) if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}


def _rule(pattern: str) -> str:
    if pattern in SPLIT_RULES:
        return f"a rule with {_digits(pattern)}"
    return f"the rule {pattern if len(pattern) < 60 else pattern[:57] + '…'}"


def _digits(pattern: str) -> str:
    most = SPLIT_RULES[pattern].digits
    if most == 0:
        return "numbers of any length in one word"
    return "each digit a word" if most == 1 else f"at most {most} digits in a word"


def _named(steps: Sequence[Mapping[str, Any]]) -> str:
    """Steps of a normalizer or of what cuts text."""
    said = (
        f"{step['type']} {json.dumps(next(iter(step['pattern'].values())), ensure_ascii=False)}"
        if isinstance(step.get("pattern"), dict)
        else step["type"]
        for step in steps
    )
    return ", ".join(said)
