"""Vocabularies over characters as sentencepiece has them: `▁` is a space, and what has no token is said in bytes.

Any text comes back as it was. So a `▁` of the text itself must not turn into a space: it is escaped, as is the
character that the escape begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from tallow.console import say
from tallow.kernels.text.word_counts import MaxDigits, WordCounts, split_pattern

SPACE = "▁"
ESCAPE = "\x10"  # data link escape, which is a single byte and hardly ever in a text
ESCAPES = {ESCAPE: ESCAPE + "0", SPACE: ESCAPE + "1"}  # the first is replaced first, and last when it is undone
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class CoveredWords(NamedTuple):
    """Words, cut where they have characters that are to be said in bytes, without these.

    Args:
        alphabet: The characters that have tokens, `▁` for a space, by their code points.
        symbols: Of all words, one after another: places in the alphabet.
        ends: Where each word ends.
        counts: How often each occurs.
    """

    alphabet: list[str]
    symbols: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def cover(words: WordCounts, coverage: float, most: int) -> CoveredWords:
    """Choose the most frequent characters, so many that they are a share of the text, or as many as there is place for.

    Args:
        coverage: The share, above 0 and up to 1.
        most: How many there may be.
    """
    codes = np.frombuffer(words.bytes.decode().encode("utf-32-le"), dtype=np.int32)
    begins_one = np.frombuffer(words.bytes, dtype=np.uint8) & 0xC0 != 0x80
    lengths = np.diff(np.cumsum(begins_one)[words.ends - 1], prepend=0)
    word = np.repeat(np.arange(len(words.ends)), lengths)
    known, place = np.unique(codes, return_inverse=True)
    frequency = np.zeros(len(known), dtype=np.int64)
    np.add.at(frequency, place, words.counts[word])
    wanted = ~np.isin(known, [ord(character) for character in ESCAPES])
    order = np.lexsort((known, -frequency))
    order = order[wanted[order]]
    before = np.cumsum(frequency[order]) - frequency[order]
    chosen = order[before < coverage * frequency.sum()]
    if len(chosen) > most:
        say(f"only {most:,} of the {len(chosen):,} characters to be covered have a place in the vocabulary")
        chosen = chosen[:most]
    chosen = np.sort(chosen)
    symbol = np.full(len(known), -1, dtype=np.int32)
    symbol[chosen] = np.arange(len(chosen))
    symbols = symbol[place]
    kept = np.flatnonzero(symbols >= 0)
    is_last = np.append((np.diff(kept) > 1) | (np.diff(word[kept]) > 0), True)[: len(kept)]
    alphabet = [SPACE if code == ord(" ") else chr(code) for code in known[chosen].tolist()]
    return CoveredWords(alphabet, symbols[kept], np.flatnonzero(is_last) + 1, words.counts[word[kept[is_last]]])


def set_steps(backend: tokenizers.Tokenizer, max_digits: MaxDigits) -> None:
    """Set what comes before the model, and after it when tokens are decoded."""
    backend.normalizer = normalizers.Sequence([normalizers.Replace(old, new) for old, new in ESCAPES.items()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(max_digits)), behavior="isolated"),
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False),
        ]
    )
    undone: Sequence[decoders.Decoder] = [decoders.Replace(new, old) for old, new in reversed(ESCAPES.items())]
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " "), *undone]
    )
