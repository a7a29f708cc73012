"""What a tokenizer makes of texts: how short they become, how much of the vocabulary they use, and how fast that is.

Times are CPU seconds of this process, all its threads together, so that other work on the machine does not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tallow.kernels.text.counts import count_texts
from tallow.tokenizer.tokenizer import Tokenizer

PATTERNS: Mapping[str, str] = {
    "one letter": "a",
    "capitals": "A",
    "spaces": " ",
    "line ends": "\n",
    "spaces and line ends": " \n",
    "digits": "1",
    "punctuation": "!",
    "marks": "e\u0301",
    "emoji": "🙂",
    "Chinese": "中",
    "apostrophes": "'s",
    "no character": "\u0378",
}
"""What is repeated to make texts that are hard on tokenizers."""

SIZES = (1 << 14, 1 << 16, 1 << 18, 1 << 20)
"""Bytes of such texts. The next size is left out when this one took longer than `PATIENCE`."""

PATIENCE = 1.0
SQUARE = 1.7
"""Time that grows with at least this power of the length is called quadratic."""

SHORT_TIME = 0.02
"""Seconds that are too few to compare."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Coding:
    """What became of some texts.

    Args:
        documents: How many they are.
        words: As `tallow.kernels.text.words` has them, without symbols; of Chinese, say, each character is one.
        used: Different tokens that occur.
        longest: Tokens of the document that has most.
        densest: Bytes per token of the document that has fewest, among those of 100 bytes or more; None without one.
        encode_seconds, decode_seconds: CPU time.
    """

    documents: int
    bytes: int
    characters: int
    words: int
    tokens: int
    used: int
    longest: int
    densest: float | None
    encode_seconds: float
    decode_seconds: float

    def as_json(self, vocab_size: int) -> dict[str, Any]:
        """Its values and what follows from them: ratios (None without text) and millions of bytes a CPU second."""
        return {
            **asdict(self),
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "tokens_per_word": _ratio(self.tokens, self.words),
            "vocabulary_used": _ratio(self.used, vocab_size),
            "encode_mb_s": _ratio(self.bytes / 1e6, self.encode_seconds),
            "decode_mb_s": _ratio(self.bytes / 1e6, self.decode_seconds),
        }


@dataclass(frozen=True)
class HardText:
    """One of `PATTERNS`, repeated.

    Args:
        bytes: Of the longest one that was encoded.
        seconds: CPU time that this took.
        growth: The power of the length by which the time grows, from this text and one of a quarter its length; None
            if it is too short a time to tell, or there was no shorter one.
    """

    name: str
    bytes: int
    tokens: int
    seconds: float
    growth: float | None

    @property
    def quadratic(self) -> bool:
        return self.growth is not None and self.growth >= SQUARE

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "mb_s": _ratio(self.bytes / 1e6, self.seconds), "quadratic": self.quadratic}


class Measurement:
    """Codings of groups of texts, and of all of them together.

    Args:
        tokenizer: Whose they are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._counts = dict[str, np.ndarray]()
        self._codings = dict[str, list[Coding]]()
        tokenizer.encode_texts(pa.array(["warm"]))

    def add(self, group: str, texts: pa.StringArray) -> None:
        """Encode and decode some texts of a group. Memory is bounded by them."""
        (ids, lengths), encode_seconds = _timed(lambda: self.tokenizer.encode_texts(texts))
        documents = [some.tolist() for some in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []
        _, decode_seconds = _timed(lambda: [self.tokenizer.decode(some) for some in documents])
        found = np.bincount(ids, minlength=self.tokenizer.vocab_size)
        self._counts[group] = self._counts.get(group, 0) + found
        sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1])
        counts = count_texts(texts)
        long = sizes >= 100
        self._codings.setdefault(group, []).append(
            Coding(
                documents=len(texts),
                bytes=int(sizes.sum()),
                characters=int(counts["characters"].sum()),
                words=int(counts["plain_words"].sum()),
                tokens=len(ids),
                used=0,
                longest=int(lengths.max(initial=0)),
                densest=float((sizes[long] / lengths[long]).min()) if long.any() else None,
                encode_seconds=encode_seconds,
                decode_seconds=decode_seconds,
            )
        )

    def codings(self) -> dict[str, Coding]:
        """Of each group, by name."""
        return {group: _sum(parts, self._counts[group]) for group, parts in self._codings.items()}

    def total(self) -> Coding:
        """Of all groups together."""
        every = sum(self._counts.values(), np.zeros(self.tokenizer.vocab_size, dtype=np.int64))
        return _sum([part for parts in self._codings.values() for part in parts], every)


def encode_hard_texts(tokenizer: Tokenizer) -> list[HardText]:
    """Encode what is hard on tokenizers, the slowest first."""
    found = list[HardText]()
    for name, pattern in PATTERNS.items():
        times = list[float]()
        tokens = size = 0
        for length in SIZES:
            text = pattern * (length // len(pattern.encode()))
            size = len(text.encode())
            (ids, _), seconds = _timed(lambda text=text: tokenizer.encode_texts(pa.array([text])))
            times.append(seconds)
            tokens = len(ids)
            if seconds > PATIENCE:
                break
        told = len(times) > 1 and times[-2] > 0 and times[-1] > SHORT_TIME
        growth = math.log(times[-1] / times[-2]) / math.log(4) if told else None
        found.append(HardText(name, size, tokens, times[-1], growth))
    return sorted(found, key=lambda hard: -hard.seconds / hard.bytes)


def _sum(parts: Iterable[Coding], counts: np.ndarray) -> Coding:
    parts = list(parts)
    added = ("documents", "bytes", "characters", "words", "tokens", "encode_seconds", "decode_seconds")
    return Coding(
        **{name: sum(getattr(part, name) for part in parts) for name in added},
        used=int((counts > 0).sum()),
        longest=max((part.longest for part in parts), default=0),
        densest=min((part.densest for part in parts if part.densest is not None), default=None),
    )


def _timed(do: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = do()
    return result, time.process_time() - start


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None
