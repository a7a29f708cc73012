"""What a word is.

White space (`str.isspace`) parts words. Between it,

- letters and numbers that follow one another are a word (Unicode's L and N, with the marks and joiners behind them); an
  apostrophe between them belongs to it, so do a point and a comma between digits: `don't`, `3.14`;
- a letter of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word of its own;
- any other character is a word that is a symbol, with all that follow and are the same: `...`, `--`.
"""

from __future__ import annotations

from typing import NamedTuple

from tallow.kernels.text.classes import ALONE, FOLDED, LETTER, MARK, SPACE, WORD, character_tables

HASH_FACTOR = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


class Word(NamedTuple):
    """A word, whether white space goes before it, and whether it has letters or digits, so is no symbol."""

    text: str
    spaced: bool
    plain: bool


def words(text: str) -> list[Word]:
    """The words of a text in their order."""
    kinds = [int(kind) for kind in character_tables().kinds[[ord(character) for character in text]]] if text else []
    found = []
    at, spaced = 0, False
    while at < len(text):
        begin = at
        at += 1
        if kinds[begin] & SPACE:
            spaced = True
            continue
        if kinds[begin] & ALONE or not kinds[begin] & (WORD | MARK):
            while at < len(text) and (
                kinds[at] & MARK or (text[at] == text[begin] and not kinds[begin] & ALONE)
            ):  # fmt: skip
                at += 1
        else:
            while at < len(text) and (_goes_on(kinds[at]) or _joins(text, kinds, at)):
                at += 1
        found.append(Word(text[begin:at], spaced, any(kind & WORD for kind in kinds[begin:at])))
        spaced = False
    return found


def _goes_on(kind: int) -> bool:
    return bool(kind & (WORD | MARK)) and not kind & ALONE


def _joins(text: str, kinds: list[int], at: int) -> bool:
    if at + 1 == len(text):
        return False
    before, behind = kinds[at - 1], kinds[at + 1]
    if text[at] in "'’":
        return bool(behind & WORD) and not behind & ALONE
    return text[at] in ".," and before & (WORD | LETTER) == behind & (WORD | LETTER) == WORD


def folded(word: str) -> str:
    """A word without case and accents, its digits one 0."""
    folds = character_tables().folds
    letters = ""
    for character in word:
        code = ord(character)
        fold = int(folds[code]) if code < FOLDED else code * bool(character_tables().kinds[code] & WORD)
        if fold and not (letters.endswith("0") and fold == ord("0")):
            letters += chr(fold)
    return letters


def hash_word(word: str) -> int:
    """64 bits of a word."""
    value = 0
    for character in word:
        value = (value ^ ord(character)) * HASH_FACTOR & MASK
        value ^= value >> 32
    return value


def hash_chain(words: list[int]) -> int:
    """64 bits of some words in their order, by their hashes."""
    value = words[0]
    for word in words[1:]:
        value = ((value ^ value >> 32) * HASH_FACTOR + word) & MASK
    return value
