"""Texts as the tokens of a byte-level BPE vocabulary.

What defines it is the library `tokenizers`, which encodes where this does not apply: `tallow.tokenizer.direct` says
where. Ids are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.encoder import Encoder
from tallow.kernels.text.word_counts import GPT2, split_pattern

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SplitRule(NamedTuple):
    """A rule for cutting text into pieces that is written out in C++ (pieces.h).

    Args:
        digits: The longest run of digits in a piece; 0: GPT-2's rule.
        cased: o200k's rule.
        folded: English contractions by Unicode's case folding, in which ſ is an s.
    """

    digits: int
    cased: bool = False
    folded: bool = False


def cl100k_pattern(max_digits: int) -> str:
    """GPT-4's rule as OpenAI wrote it, with its own limit for digits."""
    digits = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


SPLIT_RULES: Mapping[str, SplitRule] = {
    GPT2: SplitRule(0),
    **{split_pattern(digits): SplitRule(digits) for digits in (1, 2, 3)},
    **{cl100k_pattern(digits): SplitRule(digits, folded=True) for digits in (1, 2, 3)},
    O200K: SplitRule(3, cased=True, folded=True),
}
"""By the regular expression as the library takes it."""


class BpeVocabulary(NamedTuple):
    """A byte-level BPE vocabulary by symbols, which count from 0.

    Args:
        rule: Where text is cut.
        alphabet: The symbol of each byte.
        merges: Left, right and merged symbol of each merge, the first to be applied first; shape (merges, 3).
        ids: The id of each symbol.
        whole: Tokens, by their bytes, that a piece becomes as it is, whatever the merges say, and their symbols.
        stops: What a text must not hold to be encoded here.
    """

    rule: SplitRule
    alphabet: npt.NDArray[np.int32]
    merges: npt.NDArray[np.int32]
    ids: npt.NDArray[np.uint32]
    whole: Mapping[bytes, int]
    stops: Sequence[str]


class BpeEncoder(Encoder):
    """Encodes texts; to be used by several threads at a time.

    Args:
        vocabulary: All symbols that it names have an id.
    """

    def __init__(self, vocabulary: BpeVocabulary) -> None:
        extension = native()
        assert extension is not None
        left, right, merged = (np.ascontiguousarray(column, dtype=np.int32) for column in vocabulary.merges.T)
        whole = pa.array(list(vocabulary.whole), pa.binary()).view(pa.string())  # bytes that need not be UTF-8
        symbols = np.array(list(vocabulary.whole.values()), dtype=np.int32)
        self._native = extension.BpeEncoder(
            tuple(vocabulary.rule),
            vocabulary.alphabet.ctypes.data,
            left.ctypes.data,
            right.ctypes.data,
            merged.ctypes.data,
            len(left),
            vocabulary.ids.ctypes.data,
            len(vocabulary.ids),
            places(whole),
            symbols.ctypes.data,
            list(vocabulary.stops),
        )

    @staticmethod
    def available() -> bool:
        return prefers_fast() and native() is not None
