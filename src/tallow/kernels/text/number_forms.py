"""Which numbers may be private: how they are written, and what is beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

Sizes = tuple[int, ...]

MIN_DIGITS, MAX_DIGITS, MAX_SIZE, MAX_GROUPS = 7, 17, 31, 12
BEFORE, AFTER, WORD_BEFORE = 52, 12, 40
"""Characters before and behind a number in which a word counts, and those before a number within it."""

_SIZES = "0123456789abcdefghijklmnopqrstuv"
_NUMBER = re.compile("[0-9٠-٩۰-۹０-９]+")
_STRANGE = "\U0010ffff"
_FOLDS = {
    **{
        code: code + 0x20 for code in (*range(0x41, 0x5B), *range(0xC0, 0xD7), *range(0xD8, 0xDF), *range(0x410, 0x430))
    },
    **{code: code + 0x50 for code in range(0x400, 0x410)},
    **dict.fromkeys((0x130, 0x131, 0x17F, 0x212A, *range(0x1C80, 0x1C90)), _STRANGE),
}
"""Lower case of ASCII, Latin-1 and Cyrillic; letters beyond them that some regard as the same as theirs are strange."""


@dataclass(frozen=True, eq=False)
class NumberForms:
    """Numbers that may be private.

    Args:
        pieces: Sizes of groups of digits, and what their digits begin with: of the whole number, or of a piece that
            begins at a space or at a bracket.
        abroad: What digits begin with that begin with 00, and how many there are at least: of such pieces too.
        anywhere: Sizes of successive groups without a single dot between them, and joined to others by no single dot or
            hyphen.
        lettered: The same, with dots between them too, where a letter is beside the number.
        words: In lower case: what says of a number beside it that it is private. `<` and `>` stand for where a word
            begins and ends.
    """

    pieces: Mapping[Sizes, Iterable[str]]
    abroad: Mapping[str, int]
    anywhere: frozenset[Sizes]
    lettered: frozenset[Sizes]
    words: Sequence[str]

    @cached_property
    def lines(self) -> tuple[bytes, bytes, bytes, bytes]:
        """As the extension takes them."""
        pieces = [f"{_written(sizes)}:{first}" for sizes, firsts in self.pieces.items() for first in firsts]
        pieces += [
            f"={_SIZES[size]}:{first}" for first, least in self.abroad.items() for size in range(least, MAX_DIGITS + 1)
        ]
        shapes = ([f"{_written(sizes)}:" for sizes in sorted(some)] for some in (self.anywhere, self.lettered))
        parts = ("".join(f"{line}\n" for line in lines) for lines in (pieces, *shapes, self.words))
        pieces_, anywhere, lettered, words = (part.encode() for part in parts)
        return pieces_, anywhere, lettered, words

    def may_be(self, text: str, start: int, end: int) -> bool:
        """Whether the number there may be one of them."""
        number = text[start:end]
        pieces = [number, *re.split(r"[ \xa0]", number), *number.split("(")]
        return (
            text[:start].endswith(("+", "+(", "＋", "＋("))
            or any(map(self._is_piece, pieces))
            or _has_any(number, False, self.anywhere)
            or (_has_letter(text, start, end) and _has_any(number, True, self.lettered))
            or self._is_near(text, start, end)
        )

    def _is_piece(self, piece: str) -> bool:
        groups = _NUMBER.findall(piece)
        digits = "".join(str(int(digit)) for group in groups for digit in group)
        if not MIN_DIGITS <= len(digits) <= MAX_DIGITS:
            return False
        if any(digits.startswith(first) and len(digits) >= least for first, least in self.abroad.items()):
            return True
        return any(map(digits.startswith, self.pieces.get(tuple(map(len, groups)), ())))

    def _is_near(self, text: str, start: int, end: int) -> bool:
        behind = text[max(0, start - BEFORE) : start].rpartition("\n")[2]
        bounded = max(0, len(behind) + end - start - WORD_BEFORE)
        folded, ahead = behind.translate(_FOLDS), text[end : end + AFTER].partition("\n")[0].translate(_FOLDS)
        return (
            _STRANGE in folded + ahead
            or any(word.strip("<>") in ahead for word in self.words)
            or any(_has_word(folded, bounded, word) for word in self.words)
        )


def _written(sizes: Sizes) -> str:
    assert len(sizes) <= MAX_GROUPS
    return "".join(_SIZES[size] for size in sizes)


def _has_any(number: str, dots: bool, shapes: frozenset[Sizes]) -> bool:
    groups = list(_NUMBER.finditer(number))
    between = [number[a.end() : b.start()] for a, b in pairwise(groups)]
    joined = [False, *(separator in (".", "-") for separator in between), False]
    sizes = tuple(len(group[0]) for group in groups)
    return any(
        sizes[first:last] in shapes
        for first in range(len(sizes))
        for last in range(first + 1, min(len(sizes), first + MAX_GROUPS) + 1)
        if not joined[first] and not joined[last] and (dots or "." not in between[first : last - 1])
    )


def _has_letter(text: str, start: int, end: int) -> bool:
    return bool(
        re.match("[ -]?[A-Zx](?![A-Za-z0-9_])", text[end : end + 3])
        or re.search(r"[AB][ \xa0]?\Z", text[max(0, start - 2) : start])
    )


def _has_word(text: str, bounded: int, word: str) -> bool:
    """`bounded`: from where on a word surely begins where it does; before it, one that is cut may be seen."""
    for match in re.finditer(f"(?={re.escape(word.strip('<>'))})", text):
        place, end = match.start(), match.start() + len(word.strip("<>"))
        begins = place <= bounded or re.match("[a-z0-9_]", text[place - 1]) is None
        ends = re.match("[a-z0-9_]", text[end : end + 1]) is None
        if (begins or not word.startswith("<")) and (ends or not word.endswith(">")):
            return True
    return False
