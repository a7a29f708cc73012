"""Texts as one array of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.text import places


class Encoder:
    """Encodes texts in C++; to be used by several threads at a time."""

    _native: Any

    def encode(
        self, texts: pa.StringArray, end: int | None = None
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The tokens of all texts, one after another, and how many there are of each.

        A text that this encoder was told to leave out has none, and the length -1.

        Args:
            texts: Any.
            end: The id that is to follow each text; it counts.
        """
        address, data, count = places(texts)
        offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset :] if count else np.zeros(1, np.int32)
        tokens = np.empty(int(offsets[count]) - int(offsets[0]) + count, dtype=np.uint32)
        lengths = np.empty(count, dtype=np.int64)
        ending = -1 if end is None else end
        found = self._native.encode((address, data, count), ending, tokens.ctypes.data, lengths.ctypes.data)
        return tokens[:found], lengths
