"""Tensors whose memory is a file: the system reads what is used, and writes back what is to leave memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from tallow.errors import writing

GROWTH = 0.25
READ_BYTES = 1 << 20
PASSING_S = 0.02
POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it


@dataclass(frozen=True)
class Slot:
    """A place in the file, of whole pages, for one tensor after another.

    Args:
        address: Where it begins in memory.
    """

    mapping: mmap.mmap
    offset: int
    num_bytes: int
    address: int

    def tensor(self, like: Tensor) -> Tensor:
        """A tensor there, of the dtype, shape and strides of another; its values are what lies there."""
        flat = torch.frombuffer(self.mapping, dtype=like.dtype, count=extent(like), offset=self.offset)
        return flat.as_strided(like.size(), like.stride())


def extent(tensor: Tensor) -> int:
    """Entries from a tensor's first one in memory to its last one."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))


class MappedFile:
    """A file without a name, mapped into memory; it is gone when no tensor lies in it, or the process ends.

    Memory holds what of it was used since it was dropped. What was dropped the system keeps as long as it has no better
    use for that memory; it writes it back in its own time.

    Args:
        directory: On the disk that it is to be on.

    Raises:
        UsageError: The place cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (it lives as long as this)
        self._size = 0
        self._mappings: list[tuple[int, mmap.mmap]] = []
        self._used = 0  # of the last one
        # unlike Python's, its calls let other threads run
        self._madvise = ctypes.CDLL(None).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def allocate(self, num_bytes: int) -> Slot:
        """Room for a tensor.

        Raises:
            CapacityError: The disk is full. So it is known now, and not when a page is written to.
        """
        num_bytes = _pages(num_bytes)
        if not self._mappings or self._used + num_bytes > len(self._mappings[-1][1]):
            self._grow(max(num_bytes, _pages(int(GROWTH * self._size))))
        (begin, mapping), offset = self._mappings[-1], self._used
        self._used += num_bytes
        return Slot(mapping, offset, num_bytes, begin + offset)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the file."""
        return any(begin <= tensor.data_ptr() < begin + len(mapping) for begin, mapping in self._mappings)

    def want(self, tensors: Iterable[Tensor]) -> None:
        """Bring the pages of tensors in the file into memory; back when they are there."""
        for begin, size in map(_span, tensors):
            # one call reads no more than a device takes at once
            for offset in range(0, size, READ_BYTES):
                self._madvise(begin + offset, min(READ_BYTES, size - offset), mmap.MADV_WILLNEED)
            self._madvise(begin, size, POPULATE_WRITE)

    def drop(self, tensors: Iterable[Tensor]) -> None:
        """Let go of the pages of tensors in the file; when they are used again, the system reads them."""
        for begin, size in map(_span, tensors):
            self._madvise(begin, size, mmap.MADV_DONTNEED)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Within this block, what is used of the file leaves memory at once: all of it is read, once."""
        ended = Event()

        def drop() -> None:
            while not ended.wait(PASSING_S):
                for begin, mapping in self._mappings:
                    self._madvise(begin, len(mapping), mmap.MADV_DONTNEED)

        with ThreadPoolExecutor(1) as executor:
            executor.submit(drop)
            try:
                yield
            finally:
                ended.set()

    def _grow(self, num_bytes: int) -> None:
        with writing(self.directory):
            os.posix_fallocate(self._file.fileno(), self._size, num_bytes)
        mapping = mmap.mmap(self._file.fileno(), num_bytes, offset=self._size)
        self._mappings.append((torch.frombuffer(mapping, dtype=torch.uint8).data_ptr(), mapping))
        self._size, self._used = self._size + num_bytes, 0


def _pages(num_bytes: int) -> int:
    """Bytes of as many pages as it takes."""
    return -(-num_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where the pages of a tensor's slot begin, and their bytes."""
    return tensor.data_ptr(), _pages(extent(tensor) * tensor.itemsize)
