"""The pieces into which texts are cut before pairs of bytes are merged, and how often each occurs."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Regex, pre_tokenizers

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.once import once

MaxDigits = Literal[0, 1, 2, 3]
LETTER, NUMBER, WHITE = 1, 2, 4
WHITE_SPACE = (
    *range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000
)  # fmt: skip
"""Unicode's property White_Space, which regular expressions go by; `str.isspace` has some more."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def split_pattern(max_digits: MaxDigits) -> str:
    """Where text is cut: GPT-4's rule (cl100k_base of tiktoken) with its own limit for digits; 0: GPT-2's.

    In this order: English contractions; letters with one character before them; digits; punctuation with a space
    before and line ends behind it; line ends; spaces. With one digit or three this is, character for character, what
    llama.cpp does for `tokenizer.ggml.pre` of `deepseek-r1-qwen` and `dbrx`.
    """
    if max_digits == 0:
        return GPT2
    digits = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


class WordCounts(NamedTuple):
    """Words by the order of their bytes.

    Args:
        bytes: Of all of them, one after another.
        ends: Where each ends.
        counts: How often each occurs.
    """

    bytes: bytes
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


class WordCounter:
    """Counts the pieces of texts.

    Args:
        max_digits: As of `split_pattern`.
    """

    def __init__(self, max_digits: MaxDigits) -> None:
        extension = native() if prefers_fast() else None
        self._native = None
        self._counter: Counter[bytes] = Counter()
        self._properties = properties() if extension is not None else None
        if extension is not None and self._properties is not None:
            self._native = extension.WordCounter(self._properties.ctypes.data, max_digits)
        self._splitter = pre_tokenizers.Split(Regex(split_pattern(max_digits)), behavior="isolated")

    def add(self, texts: pa.StringArray) -> None:
        """Count those of some texts."""
        if self._native is not None:
            self._native.add(places(texts))
            return
        for text in texts.to_pylist():
            self._counter.update(piece.encode() for piece, _ in self._splitter.pre_tokenize_str(text or ""))

    def counts(self) -> WordCounts:
        """What has been counted so far."""
        if self._native is not None:
            return WordCounts(*self._native.counts())
        words = sorted(self._counter)
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        return WordCounts(b"".join(words), ends, np.array([self._counter[word] for word in words], dtype=np.int64))


@once()
def properties() -> npt.NDArray[np.uint8]:
    """For each character there can be whether it is a letter, a number, white space; as this Python's Unicode says."""
    found = np.zeros(0x110000, dtype=np.uint8)
    for code in (*range(0x33480), *range(0xE0000, 0xE0200)):  # elsewhere is neither
        category = unicodedata.category(chr(code))[0]
        found[code] = LETTER if category == "L" else NUMBER if category == "N" else 0
    found[list(WHITE_SPACE)] = WHITE
    return found
