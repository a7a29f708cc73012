"""What is held out for validation, decided by the digests of texts alone.

So neither the order of the files nor the number of processes matters, and texts that are the same always fall on
the same side. Sets are nested: what is held out at a small fraction is held out at any larger one.
"""

from __future__ import annotations

from tallow.errors import DataError

DIGEST_BITS = 128


def is_held_out(digest: bytes, fraction: float) -> bool:
    """Whether a text with this SHA-256 is held out where that leaves no side empty."""
    return int.from_bytes(digest[: DIGEST_BITS // 8]) < int(fraction * 2**DIGEST_BITS)


def held_out_below(fraction: float, smallest: int, largest: int) -> int:
    """The digest below which texts are held out; if that would leave a side empty, the nearest text changes sides.

    Args:
        fraction: Of the texts.
        smallest, largest: Digests of texts there are, as numbers of 128 bits.

    Raises:
        DataError: Something is to be held out of a single text.
    """
    if fraction == 0:
        return 0
    if smallest == largest:
        raise DataError(
            "there is only one document, so none can be held out for validation",
            "set prepare.split to paragraphs or lines, or prepare.validation_fraction to 0",
        )
    return min(max(int(fraction * 2**DIGEST_BITS), smallest + 1), largest)
