"""Words of texts as hashes, and the log probabilities that an n-gram model with backoff gives them.

A word is a run of joined characters, or a single sign; in scripts that leave no space between words it is a character.
Letters of ASCII are taken as small ones. N-grams are told apart by 64 bits only: of 100 million, two are likely to be
taken for each other once in 4,000 models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places

BEGIN, END = 1, 2
"""What stands for the beginning and the end of a text."""

HIGHEST_ORDER = 8

_START, _PRIME, _GOLDEN, _MASK = 14695981039346656037, 1099511628211, 0x9E3779B97F4A7C15, (1 << 64) - 1
_BLANK, _ALONE, _JOINED = 0, 1, 2

# First and last character and kind; others of the first two planes are joined, and those behind them alone. A later
# range goes before an earlier one.
_RANGES = (
    (0x00, 0x20, _BLANK),
    (0x21, 0x7E, _ALONE),
    (0x30, 0x39, _JOINED),
    (0x41, 0x5A, _JOINED),
    (0x61, 0x7A, _JOINED),
    (0x7F, 0xA0, _BLANK),
    (0xA1, 0xBF, _ALONE),
    (0xAA, 0xAA, _JOINED),
    (0xB5, 0xB5, _JOINED),
    (0xBA, 0xBA, _JOINED),
    (0x60C, 0x60C, _ALONE),  # Arabic comma, semicolon, question mark, full stop
    (0x61B, 0x61F, _ALONE),
    (0x6D4, 0x6D4, _ALONE),
    (0x964, 0x965, _ALONE),  # danda
    (0xE00, 0xEFF, _ALONE),  # Thai, Lao
    (0x1000, 0x109F, _ALONE),  # Burmese
    (0x1780, 0x17FF, _ALONE),  # Khmer
    (0x2000, 0x206F, _ALONE),  # punctuation
    (0x2000, 0x200B, _BLANK),
    (0x200C, 0x200D, _JOINED),  # within words of Persian and of India's languages
    (0x2028, 0x2029, _BLANK),
    (0x202F, 0x202F, _BLANK),
    (0x205F, 0x205F, _BLANK),
    (0x20A0, 0x2BFF, _ALONE),  # signs
    (0x2E00, 0xA4CF, _ALONE),  # Chinese, Japanese, Yi
    (0x3000, 0x3000, _BLANK),
    (0xF900, 0xFAFF, _ALONE),
    (0xFE10, 0xFE6F, _ALONE),
    (0xFEFF, 0xFEFF, _BLANK),
    (0xFF00, 0xFF9F, _ALONE),
    (0x1F000, 0x1FAFF, _ALONE),  # pictures
)


@dataclass(frozen=True, eq=False)
class NgramTable:
    """The n-grams of one length.

    Args:
        keys: Rising, uint64.
        log_probabilities: Natural logarithms of the last word's probability after those before it, float32.
        backoffs: Natural logarithms of what shorter contexts' probabilities count where the next word was never seen
            after this n-gram, float32.
    """

    keys: npt.NDArray[np.uint64]
    log_probabilities: npt.NDArray[np.float32]
    backoffs: npt.NDArray[np.float32]

    @functools.cached_property
    def index(self) -> tuple[npt.NDArray[np.int64], int]:
        """Where keys with the same first bits begin, and how many bits come behind these."""
        bits = max(1, len(self.keys).bit_length() - 1)
        starts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
        return np.append(np.searchsorted(self.keys, starts), len(self.keys)).astype(np.int64), 64 - bits

    @functools.cached_property
    def values(self) -> dict[int, tuple[float, float]]:
        pairs = zip(self.log_probabilities.tolist(), self.backoffs.tolist(), strict=True)
        return dict(zip(self.keys.tolist(), pairs, strict=True))


def word_hashes(texts: pa.StringArray, most_bytes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The words of texts, of each between the marks of its beginning and its end.

    Args:
        texts: N texts.
        most_bytes: That are looked at of each.

    Returns:
        Where each text's words begin, N + 1, and the words.
    """
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        return offsets, extension.word_hashes(places(texts), most_bytes, _RANGES, offsets.ctypes.data)
    found = list[int]()
    for number, text in enumerate(texts.to_pylist()):
        found += _words(text or "", most_bytes)
        offsets[number + 1] = len(found)
    return offsets, np.array(found, np.uint64)


def longer_keys(keys: npt.NDArray[np.uint64], words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Keys of n-grams that begin one word earlier; that of a single word is the word."""
    keys = (keys ^ words * np.uint64(_GOLDEN)) * np.uint64(_PRIME)  # these wrap
    return keys ^ keys >> np.uint64(32)


def score_ngrams(
    texts: pa.StringArray, most_bytes: int, tables: Sequence[NgramTable], unknown: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The sum of the natural logarithms of the probabilities of each text's words, and how many words these are.

    Args:
        texts: N texts.
        most_bytes: That are looked at of each.
        tables: Those of 1-grams, of 2-grams, and so on, at most 8; one has the ends of all n-grams of the next.
        unknown: The natural logarithm of the probability of a word that is not there.

    Returns:
        Sums and numbers of words, N each; the end of a text counts, its beginning does not.
    """
    assert 0 < len(tables) <= HIGHEST_ORDER
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    extension = native() if prefers_fast() else None
    if extension is not None:
        addresses = [
            (
                table.keys.ctypes.data,
                table.log_probabilities.ctypes.data,
                table.backoffs.ctypes.data,
                table.index[0].ctypes.data,
                table.index[1],
            )
            for table in tables
        ]
        extension.score_ngrams(
            places(texts), most_bytes, _RANGES, addresses, unknown, sums.ctypes.data, counts.ctypes.data
        )
        return sums, counts
    for number, text in enumerate(texts.to_pylist()):
        words = list(_words(text or "", most_bytes))
        sums[number] = sum(word_log_probability(words, place, tables, unknown) for place in range(1, len(words)))
        counts[number] = len(words) - 1
    return sums, counts


def word_log_probability(words: Sequence[int], place: int, tables: Sequence[NgramTable], unknown: float) -> float:
    """That of the word at a place, by the longest n-gram that ends there and is known."""
    found, log_probability = 0, unknown
    for size in range(1, min(len(tables), place + 1) + 1):
        value = tables[size - 1].values.get(_key(words[place - size + 1 : place + 1]))
        if value is None:
            break
        found, log_probability = size, value[0]
    for size in range(max(found, 1), min(len(tables) - 1, place) + 1):
        value = tables[size - 1].values.get(_key(words[place - size : place]))
        if value is None:
            break
        log_probability += value[1]
    return log_probability


def _words(text: str, most_bytes: int) -> Iterator[int]:
    yield BEGIN
    raw = text.encode()
    if len(raw) > most_bytes:
        while most_bytes > 0 and raw[most_bytes] & 0xC0 == 0x80:
            most_bytes -= 1
        raw = raw[:most_bytes]
    word = b""
    for character in raw.decode():
        kind = _kind(ord(character))
        if kind != _JOINED:
            if word:
                yield _word(word)
            word = b""
            if kind == _ALONE:
                yield _word(character.encode())
        else:
            word += character.encode().lower()
    if word:
        yield _word(word)
    yield END


@functools.lru_cache(maxsize=1 << 14)
def _kind(character: int) -> int:
    for first, last, kind in reversed(_RANGES):
        if first <= character <= last:
            return kind
    return _JOINED if character < 0x20000 else _ALONE


def _word(word: bytes) -> int:
    """FNV-1a of 64 bits, whose bits are then mixed."""
    value = _START
    for byte in word:
        value = ((value ^ byte) * _PRIME) & _MASK
    value = ((value ^ value >> 32) * _GOLDEN) & _MASK
    return value ^ value >> 29


def _key(words: Sequence[int]) -> int:
    key = words[-1]
    for word in reversed(words[:-1]):
        key = ((key ^ (word * _GOLDEN) & _MASK) * _PRIME) & _MASK
        key ^= key >> 32
    return key
