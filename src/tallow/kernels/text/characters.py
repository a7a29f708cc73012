"""How many characters texts have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places


def count_characters(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Code points of each text."""
    extension = native() if prefers_fast() else None
    if extension is None:
        return np.array([len(text) for text in texts.to_pylist()], dtype=np.int32)
    counts = np.empty(len(texts), dtype=np.int32)
    extension.count_characters(places(texts), counts.ctypes.data)
    return counts
