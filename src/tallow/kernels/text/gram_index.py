"""The n-grams of words of some passages, and where texts have them.

Words that are symbols are left out, and the others taken without case and accents; numbers stay what they are. A
passage with fewer words than an n-gram has one all the same, its whole text, if that is not too short. What is found is
found by hash and then compared word by word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.classes import FOLDED, LETTER, WORD, character_tables, class_places
from tallow.kernels.text.words import words

MOST_WORDS = 60
"""Of an n-gram."""

Integers = npt.NDArray[np.int32]


class Places(NamedTuple):
    """Where texts have n-grams, by row, first word and length.

    Args:
        rows: The texts, M of them all.
        grams: The n-grams' numbers.
        firsts: Number of the first word among the text's words that are no symbols.
        begins, ends: Bytes of the text.
        sizes: Of each text (not of each place), how many words it has that are no symbols, int64.
    """

    rows: Integers
    grams: Integers
    firsts: Integers
    begins: Integers
    ends: Integers
    sizes: npt.NDArray[np.int64]


class GramIndex:
    """All n-grams of some passages, numbered as they come.

    Args:
        passages: P texts; how often one is there does not matter.
        gram_words: Words of an n-gram, at most `MOST_WORDS`.
        shortest_words, shortest_bytes: A passage with fewer words than an n-gram, but at least so many, is one n-gram
            if these have so many bytes.
    """

    def __init__(self, passages: pa.StringArray, gram_words: int, shortest_words: int, shortest_bytes: int) -> None:
        assert 1 <= shortest_words <= gram_words <= MOST_WORDS
        self.gram_words = gram_words
        extension = native() if prefers_fast() else None
        self._native = None
        self._known: dict[tuple[str, ...], int] = {}
        self.offsets: npt.NDArray[np.int64]
        """Where each passage's n-grams begin in `members`, P + 1."""
        self.members: Integers
        """N-grams of passages, rising and each once."""
        self.lengths: Integers
        """Words of each n-gram."""
        if extension is not None:
            at = places(passages), class_places()
            self._native = extension.GramIndex(*at, gram_words, shortest_words, shortest_bytes)
            self.offsets, self.members, self.lengths = self._native.grams()
            return
        found: list[list[int]] = []
        for passage in passages.to_pylist():
            spelled, bounds = _spelled(passage or "")
            size = sum(end - begin for begin, end in bounds)
            long_enough = len(spelled) >= gram_words or (len(spelled) >= shortest_words and size >= shortest_bytes)
            grams = _grams(spelled, min(gram_words, len(spelled))) if long_enough else ()
            found.append(sorted({self._known.setdefault(gram, len(self._known)) for gram in grams}))
        self.lengths = np.array([len(gram) for gram in self._known], dtype=np.int32)
        self.offsets = np.cumsum([0, *map(len, found)]).astype(np.int64)
        self.members = np.array([gram for grams in found for gram in grams], dtype=np.int32)

    @property
    def count(self) -> int:
        """Of all n-grams."""
        return len(self.lengths)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many n-grams each passage has."""
        return np.diff(self.offsets)

    def search(self, texts: pa.StringArray, active: npt.NDArray[np.bool_]) -> Places:
        """Find n-grams in texts.

        Args:
            texts: Any number.
            active: Which n-grams are sought.
        """
        assert active.shape == (self.count,)
        sizes = np.zeros(len(texts), dtype=np.int64)
        if self._native is not None:
            flags = np.ascontiguousarray(active, dtype=np.uint8)
            rows, grams, firsts, begins, ends = self._native.search(places(texts), flags.ctypes.data, sizes.ctypes.data)
            return Places(rows, grams, firsts, begins, ends, sizes)
        lengths = sorted(set(self.lengths.tolist()))
        every: list[tuple[int, ...]] = []
        for row, text in enumerate(texts.to_pylist()):
            spelled, bounds = _spelled(text or "")
            sizes[row] = len(spelled)
            for at in range(len(spelled)):
                for length in lengths:
                    gram = self._known.get(tuple(spelled[at : at + length]), -1)
                    if at + length <= len(spelled) and gram >= 0 and active[gram]:
                        every.append((row, gram, at, bounds[at][0], bounds[at + length - 1][1]))
        rows, grams, firsts, begins, ends = np.array(every, dtype=np.int32).reshape(-1, 5).T
        return Places(rows, grams, firsts, begins, ends, sizes)


def _spelled(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words that count as they are compared, and the bytes that each has in the text."""
    spelled, bounds, at, byte = list[str](), list[tuple[int, int]](), 0, 0
    for word in words(text):
        begin = text.index(word.text, at)  # nothing but white space is between
        byte += len(text[at:begin].encode())
        size = len(word.text.encode())
        if word.plain:
            spelled.append("".join(map(_letter, word.text)))
            bounds.append((byte, byte + size))
        at, byte = begin + len(word.text), byte + size
    return spelled, bounds


def _letter(character: str) -> str:
    kinds, folds = character_tables()
    code = ord(character)
    kind = int(kinds[code])
    if kind & (WORD | LETTER) == WORD:
        return character
    fold = int(folds[code]) if code < FOLDED else code * bool(kind & WORD)
    return chr(fold) if fold else ""


def _grams(spelled: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(spelled[at : at + length]) for at in range(len(spelled) - length + 1))
