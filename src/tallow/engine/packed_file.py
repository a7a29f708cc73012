"""Packed weights in a file that is mapped: of a model that memory does not hold.

The file is written once, when the weights are packed straight into the mapping, and used as it is from then on. It lies
in `packed/` below `$TALLOW_HOME`, is made anew when the model's files have changed, and may be deleted at any time.

It is taken for whole if its header, its size and a sample of its pages are as they were written. So damage over a
fiftieth of its length is always found, a single broken page seldom: reading all of it would take as long as packing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tallow.console import say
from tallow.errors import CapacityError, reading
from tallow.files import PARTIAL, atomic_file, file_stamps, hash_value
from tallow.models.store import store_directory

LAYOUT = 1
"""Number of the layout of packed weights; a file of another one is made anew."""

HEADER_BYTES = 4096
KEPT_FREE_BYTES = 1 << 30
"""Of the disk."""

PROBED_BYTES = 64 << 20
SAMPLED_PAGES, PAGE_BYTES = 64, 4096


class PackedFile:
    """A file of packed weights, mapped and shared with every process that uses it.

    Args:
        path: A file of a header and so many bytes.
        is_filled: Whether the weights are in it; else it gets its size here, and they can be written.
    """

    def __init__(self, path: Path, num_bytes: int, *, is_filled: bool) -> None:
        self.num_bytes, self.is_filled = num_bytes, is_filled
        self.descriptor = os.open(path, os.O_RDONLY if is_filled else os.O_RDWR)
        weakref.finalize(self, os.close, self.descriptor)
        if not is_filled:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)  # as long as the writer lives: see `_remove_abandoned`
            # reserved, because a full disk would kill whoever writes later
            os.posix_fallocate(self.descriptor, 0, HEADER_BYTES + num_bytes)
        protection = mmap.PROT_READ if is_filled else mmap.PROT_READ | mmap.PROT_WRITE
        self._mapping = mmap.mmap(self.descriptor, HEADER_BYTES + num_bytes, mmap.MAP_SHARED, protection)
        self._bytes = np.frombuffer(self._mapping, np.uint8)

    @property
    def address(self) -> int:
        """Of the file's begin in memory; the weights begin `HEADER_BYTES` later."""
        return self._bytes.ctypes.data

    def seal(self, identity: bytes) -> None:
        """Write the header, once the weights are there."""
        header = self._header(identity)
        self._mapping[: len(header)] = header

    def is_sealed(self, identity: bytes) -> bool:
        """Whether these weights are in the file, as far as a sample of them tells."""
        header = self._header(identity)
        return self._mapping[: len(header)] == header

    def _header(self, identity: bytes) -> bytes:
        """Which weights these are, and a digest of that and of pages at even distances, from the first to the last."""
        digest = hashlib.sha256(identity)
        last = HEADER_BYTES + self.num_bytes - PAGE_BYTES
        for place in np.linspace(HEADER_BYTES, max(HEADER_BYTES, last), SAMPLED_PAGES).astype(int).tolist():
            digest.update(os.pread(self.descriptor, PAGE_BYTES, place))
        return identity + digest.digest()

    def read_bandwidth(self) -> float:
        """Bytes per second that come from the disk, by reading the file's begin past all caches of the system."""
        size = min(PROBED_BYTES, HEADER_BYTES + self.num_bytes)
        self._mapping.madvise(mmap.MADV_DONTNEED, 0, size)
        os.posix_fadvise(self.descriptor, 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for offset in range(0, size, 1 << 20):
            os.pread(self.descriptor, 1 << 20, offset)
        return size / (time.perf_counter() - start)


@contextmanager
def packed_file(model: Path, form: str, num_bytes: int) -> Iterator[PackedFile]:
    """The packed weights of a model; where there are none yet, a new file to be filled within the block.

    Args:
        model: The model's directory or file.
        form: What they are held in: one model may have files of several.
        num_bytes: Of all of them.

    Raises:
        CapacityError: The disk has no room for them.
        UsageError: The place cannot be written.
    """
    identity, path = _identity(model, form, num_bytes), packed_path(model, form)
    packed = _open(path, num_bytes)
    if packed is not None and packed.is_sealed(identity):
        yield packed
        return
    size = f"{num_bytes / 1e9:,.2f} GB"
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    if shutil.disk_usage(path.parent).free < num_bytes + KEPT_FREE_BYTES:
        raise CapacityError(
            f"the disk has no room for the packed weights of {model} ({size}) at {path.parent}",
            "free some space, or set TALLOW_HOME to a place that has it",
        )
    say(f"packing the weights of {model} once, into {path} ({size}; it may be deleted at any time)")
    with atomic_file(path) as temporary:
        packed = PackedFile(temporary, num_bytes, is_filled=False)
        yield packed
        packed.seal(identity)


def packed_path(model: Path, form: str) -> Path:
    """Where the packed weights of a model are, or would be."""
    key = hash_value([str(model.resolve()), form])[:16]
    return store_directory().parent / "packed" / f"{model.stem}-{form}-{key}.weights"


def _identity(model: Path, form: str, num_bytes: int) -> bytes:
    """What a file begins with that holds these weights of the model as it is now."""
    identity = {"layout": LAYOUT, "form": form, "bytes": num_bytes, "files": hash_value(file_stamps(model))}
    return b"tallow packed weights\n" + json.dumps(identity, sort_keys=True).encode()


def _open(path: Path, num_bytes: int) -> PackedFile | None:
    """The file that is there, if it has the right size."""
    if not path.exists() or path.stat().st_size != HEADER_BYTES + num_bytes:
        return None
    with reading(path, "file of packed weights"):
        return PackedFile(path, num_bytes, is_filled=True)


def _remove_abandoned(directory: Path) -> None:
    """Remove what writers have left that were killed: one that lives has locked its file before it gave it a size."""
    for partial in directory.glob(f".*{PARTIAL}"):
        with suppress(OSError), open(partial, "r+b") as file:  # it is locked, or another's, or gone by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:
                partial.unlink()
