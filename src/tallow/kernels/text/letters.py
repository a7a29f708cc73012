"""Which characters are letters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallow.once import once

CHARACTERS = 0x110000


@once()
def letter_bits() -> npt.NDArray[np.uint8]:
    """Bit `c & 7` of byte `c >> 3` tells whether character `c` is a letter to this Python (`str.isalpha`)."""
    return np.packbits(np.fromiter(map(str.isalpha, map(chr, range(CHARACTERS))), bool, CHARACTERS), bitorder="little")
