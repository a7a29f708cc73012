"""Which characters are letters."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

CHARACTERS = 0x110000


@functools.cache
def letter_bits() -> npt.NDArray[np.uint8]:
    """Bit `c & 7` of byte `c >> 3` tells whether character `c` is a letter to this Python (`str.isalpha`)."""
    return np.packbits(np.fromiter(map(str.isalpha, map(chr, range(CHARACTERS))), bool, CHARACTERS), bitorder="little")
