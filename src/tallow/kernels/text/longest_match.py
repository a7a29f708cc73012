"""Texts as the tokens of a vocabulary of byte strings, of which always the longest that fits is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.encoder import Encoder


class LongestMatch(Encoder):
    """Encodes texts from left to right; the time is that of the text by the longest token, at worst.

    Args:
        tokens: Ids by bytes. Each byte is a token.
        stops: A text that holds one of them is left out.
    """

    def __init__(self, tokens: Mapping[bytes, int], stops: Sequence[str] = ()) -> None:
        assert all(bytes([byte]) in tokens for byte in range(256))
        extension = native() if prefers_fast() else None
        self._tokens, self._stops = tokens, stops
        self._longest = max(map(len, tokens))
        self._native = None
        if extension is not None:
            texts = pa.array(list(tokens), pa.binary()).view(pa.string())  # bytes that need not be UTF-8
            ids = np.array(list(tokens.values()), dtype=np.uint32)
            self._native = extension.LongestMatch(places(texts), ids.ctypes.data, list(stops))

    def encode(
        self, texts: pa.StringArray, end: int | None = None
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        if self._native is not None:
            return super().encode(texts, end)
        ids, lengths = list[int](), list[int]()
        for text in texts.to_pylist():
            if any(stop in text for stop in self._stops):
                lengths.append(-1)
                continue
            found = [*self._matches(text.encode()), *(() if end is None else (end,))]
            ids += found
            lengths.append(len(found))
        return np.array(ids, dtype=np.uint32), np.array(lengths, dtype=np.int64)

    def _matches(self, text: bytes) -> Iterator[int]:
        at = 0
        while at < len(text):
            length = min(self._longest, len(text) - at)
            while text[at : at + length] not in self._tokens:
                length -= 1
            yield self._tokens[text[at : at + length]]
            at += length
