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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tallow.console import say
from tallow.errors import CapacityError, reading
from tallow.files import PARTIAL, atomic_file, file_stamps, hash_value
from tallow.models.store import store_directory

LAYOUT = 3
"""Number of the layout of packed weights; a file of another one is made anew."""

HEADER_BYTES = 1 << 16
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

    def seal(self, header: bytes) -> None:
        """Write the header, and behind it a digest of a sample of the weights, once they are there."""
        sealed = header + self._sample()
        self._mapping[: len(sealed)] = sealed

    def is_sealed(self, header: bytes) -> bool:
        """Whether the file has this header, and the weights are as they were when it was written."""
        sealed = header + self._sample()
        return self._mapping[: len(sealed)] == sealed

    def _sample(self) -> bytes:
        """A digest of pages at even distances, from the first to the last."""
        digest, last = hashlib.sha256(), max(0, self.num_bytes - PAGE_BYTES)
        for index in range(SAMPLED_PAGES):
            place = HEADER_BYTES + last * index // (SAMPLED_PAGES - 1)
            digest.update(os.pread(self.descriptor, PAGE_BYTES, place))
        return digest.digest()

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
def packed_file(model: Path, form: str, num_bytes: int, incompressible: Sequence[str] = ()) -> Iterator[PackedFile]:
    """The packed weights of a model; where there are none yet, a new file to be filled within the block.

    Args:
        model: The model's directory or file.
        form: What they are held in: one model may have files of several.
        num_bytes: Of all of them.
        incompressible: Modules whose weights are not compressed though the form says so; the file names them.

    Raises:
        CapacityError: The disk has no room for them.
        UsageError: The place cannot be written.
    """
    header, path = _header(model, form, num_bytes, incompressible), packed_path(model, form)
    packed = _open(path, num_bytes)
    if packed is not None and packed.is_sealed(header):
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
        packed.seal(header)


def incompressible_modules(model: Path, form: str) -> list[str]:
    """Those that the file of a model's packed weights names, if it is there and the model has not changed since."""
    path = packed_path(model, form)
    if not path.exists():
        return []
    with reading(path, "file of packed weights"), open(path, "rb") as file:
        text, brace, rest = file.read(HEADER_BYTES).partition(b"}")
    if hashlib.sha256(text + brace).digest() != rest[:32]:
        return []
    identity = json.loads((text + brace).partition(b"\n")[2])
    is_current = identity["layout"] == LAYOUT and identity["files"] == hash_value(file_stamps(model))
    return identity["incompressible"] if is_current else []


def packed_path(model: Path, form: str) -> Path:
    """Where the packed weights of a model are, or would be."""
    key = hash_value([str(model.resolve()), form])[:16]
    return store_directory().parent / "packed" / f"{model.stem}-{form}-{key}.weights"


def _header(model: Path, form: str, num_bytes: int, incompressible: Sequence[str]) -> bytes:
    """What a file begins with that holds these weights of the model as it is now; a digest of it is its end."""
    identity = {"layout": LAYOUT, "form": form, "bytes": num_bytes, "files": hash_value(file_stamps(model))}
    identity["incompressible"] = list(incompressible)
    text = b"tallow packed weights\n" + json.dumps(identity, sort_keys=True).encode()
    return text + hashlib.sha256(text).digest()


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
