"""Sampling in C++: the rows of logits are checked here, because only addresses go on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tallow.kernels.cpu import native, operation_set, operations
from tallow.kernels.threads import num_threads

Row = npt.NDArray[np.float32]


def choose_tokens(rows: Sequence[Row], draws: Sequence[tuple[float | int, ...]]) -> list[int] | None:
    """`tallow.kernels.sampling.choose_tokens`; a row's token does not depend on what other rows there are.

    Returns:
        None if there is no extension, or for rows that it does not take.
    """
    extension = native()
    if extension is None or not all(_fits(logits_V, len(rows[0])) for logits_V in rows):
        return None
    addresses = [logits_V.__array_interface__["data"][0] for logits_V in rows]  # sooner than by way of ctypes
    size = len(rows[0]) if rows else 0
    return extension.choose_tokens(operations(operation_set()), addresses, size, draws, num_threads())


def _fits(logits_V: Row, size: int) -> bool:
    return logits_V.dtype == np.float32 and len(logits_V) == size and logits_V.flags.c_contiguous
