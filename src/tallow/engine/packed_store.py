"""Packed models on the disk: what has been packed once is read from then on, without torch and without the model.

A packed model is a directory in `packed/` below `$TALLOW_HOME`: its plan, its weights as they are multiplied, and its
tokenizer. It is made anew when the model's files have changed, and may be deleted at any time.

It is taken for whole if its plan, its size and a sample of its pages are as they were written. So damage over a
fiftieth of its length is always found, a single broken page seldom: reading all of it would take as long as packing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tallow.console import say
from tallow.engine.packed_model import Memory, PackedModel, Plan
from tallow.errors import CapacityError, TallowError
from tallow.files import (
    PARTIAL,
    REPLACED,
    atomic_directory,
    file_stamps,
    fingerprint_files,
    hash_file,
    hash_value,
    write_json,
)
from tallow.kernels import cpu
from tallow.models.store import store_directory
from tallow.tokenizer.tokenizer import Tokenizer

LAYOUT = 6
"""Number of the layout of packed models; those of another one are not looked at."""

PLAN, WEIGHTS = "plan.json", "weights"
KEEPER = "tallow-keeper"
"""Name of the threads that copy."""
KEPT_FREE_BYTES = 1 << 30
"""Of the disk."""

READ_BYTES = 64 << 20
"""At once; no more can be written than 2 GB."""
SAMPLED_PAGES, PAGE_BYTES = 64, 4096
REPLACING_S = 60.0


class StoredPackedModel:
    """A packed model on the disk, as `find_packed` finds it."""

    def __init__(self, path: Path, plan: Plan, descriptor: int) -> None:
        self.path, self.plan, self.descriptor = path, plan, descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self) -> PackedModel:
        """The model in memory.

        Raises:
            MemoryError: There is not so much.
        """
        memory, begin = Memory.of_its_own(self.plan.num_bytes), 0
        while begin < len(memory.bytes):
            part = memory.bytes[begin : begin + READ_BYTES]
            begin += os.preadv(self.descriptor, [part.data], begin)
        return PackedModel(self.plan, memory)

    def map(self) -> PackedModel:
        """The model mapped, shared with every process that maps it."""
        return PackedModel(self.plan, Memory.of_file(self.descriptor, self.plan.num_bytes, writable=False))

    def read_bandwidth(self) -> float:
        """Bytes per second that come from the disk, by reading the file's begin past all caches of the system."""
        size = min(READ_BYTES, self.plan.num_bytes)
        os.posix_fadvise(self.descriptor, 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for offset in range(0, size, 1 << 20):
            os.pread(self.descriptor, 1 << 20, offset)
        return size / (time.perf_counter() - start)

    def load_tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one.

        Raises:
            DataError: It is broken.
        """
        return Tokenizer.load(self.path) if (self.path / "tokenizer.json").exists() else None


def packed_path(model: Path, precision: str) -> Path:
    """Where a model that is packed in a precision is, or would be."""
    form = precision if cpu.operation_set() != "portable" else f"{precision}-portable"
    key = hash_value([str(model.resolve()), form, LAYOUT])[:16]
    return store_directory().parent / "packed" / f"{model.stem}-{form}-{key}"


def find_packed(model: Path, precision: str) -> StoredPackedModel | None:
    """The packed model, if it is there, whole, and the model has not changed since."""
    path = packed_path(model, precision)
    try:
        description = json.loads((path / PLAN).read_bytes())
        if description["files"] != fingerprint_files(model):
            return None
        plan = TypeAdapter(Plan).validate_python(description["plan"])
        found = StoredPackedModel(path, plan, os.open(path / WEIGHTS, os.O_RDONLY))
        has_all = os.fstat(found.descriptor).st_size == plan.num_bytes
        if not has_all or description["tokenizer"] != _tokenizer_files(path):
            return None
        return found if description["seal"] == _seal(description, found.descriptor, plan.num_bytes) else None
    except (OSError, ValueError, LookupError, TypeError):  # pydantic's errors are values'
        return None


@dataclass(frozen=True)
class Place:
    """Where a model is to be kept that is being packed.

    Args:
        model: The model's directory or file.
        precision: What `find_packed` is to find it by.
        files: A sign of the model's files as they were when it was opened.
        load_tokenizer: Gives the model's tokenizer, if it has one.
    """

    model: Path
    precision: str
    files: str
    load_tokenizer: Callable[[], Tokenizer | None]

    @contextmanager
    def memory(self, plan: Plan) -> Iterator[Memory]:
        """Memory of a new file, to be filled within the block; from then on the packed model is found.

        Raises:
            CapacityError: The disk has no room for it.
            UsageError: The place cannot be written.
        """
        path, size = packed_path(self.model, self.precision), f"{plan.num_bytes / 1e6:,.0f} MB"
        with atomic_directory(path) as temporary:
            _remove_abandoned(path.parent)
            if shutil.disk_usage(path.parent).free < plan.num_bytes + KEPT_FREE_BYTES:
                raise CapacityError(
                    f"the disk has no room for the packed weights of {self.model} ({size}) at {path.parent}",
                    "free some space, or set TALLOW_HOME to a place that has it",
                )
            say(f"keeping the packed weights of {self.model} in {path} ({size}; it may be deleted at any time)")
            with open(temporary / WEIGHTS, "x+b") as file:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # as long as the writer lives: see `_remove_abandoned`
                # reserved, because a full disk would kill whoever writes later
                os.posix_fallocate(file.fileno(), 0, plan.num_bytes)
                memory = Memory.of_file(file.fileno(), plan.num_bytes, writable=True)
            assert memory.descriptor is not None
            yield memory
            description = {
                "model": str(self.model.resolve()),
                "files": self.files,
                "plan": TypeAdapter(Plan).dump_python(plan, mode="json"),
            }
            tokenizer = self.load_tokenizer()
            if tokenizer is not None:
                tokenizer.save(temporary)
            description["tokenizer"] = _tokenizer_files(temporary)
            write_json(temporary / PLAN, description | {"seal": _seal(description, memory.descriptor, plan.num_bytes)})

    def keep(self, packed: PackedModel) -> None:
        """Copy a packed model there, in a thread: nobody waits for it but the end of the process."""

        def copy() -> None:
            try:
                with self.memory(packed.plan) as memory:
                    assert memory.descriptor is not None
                    written = 0
                    while written < packed.plan.num_bytes:  # not through the mapping: its pages would count as ours
                        part = packed.memory.bytes[written : written + READ_BYTES]
                        written += os.pwrite(memory.descriptor, part.data, written)
            except TallowError as error:
                say(f"the packed weights are not kept: {error}")

        threading.Thread(target=copy, name=KEEPER).start()


def _tokenizer_files(path: Path) -> dict[str, str]:
    """Digests of the files of a packed model that are its tokenizer's, by name."""
    names = {name for name in file_stamps(path) if name not in (PLAN, WEIGHTS)}
    return {name: hash_file(path / name) for name in sorted(names)}


def _seal(description: dict[str, Any], descriptor: int, num_bytes: int) -> str:
    """A digest of what describes a packed model, and of pages of its weights at even distances, first to last."""
    digest = hashlib.sha256(hash_value([description[key] for key in ("model", "files", "plan", "tokenizer")]).encode())
    last = max(0, num_bytes - PAGE_BYTES)
    for index in range(SAMPLED_PAGES):
        digest.update(os.pread(descriptor, PAGE_BYTES, last * index // (SAMPLED_PAGES - 1)))
    return digest.hexdigest()


def _remove_abandoned(directory: Path) -> None:
    """Remove what packers have left that were killed, and packed models whose model is gone.

    A packer that lives has locked its file before it gave it a size, and removes what it has replaced at once.
    """
    for old in directory.glob(f".*{REPLACED}"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > REPLACING_S:
                shutil.rmtree(old)
    for partial in directory.glob(f".*{PARTIAL}"):
        with suppress(OSError), open(partial / WEIGHTS, "r+b") as file:  # it is locked, or another's, or gone by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:
                shutil.rmtree(partial)
    for plan in directory.glob(f"*/{PLAN}"):
        with suppress(OSError, ValueError, LookupError, TypeError):
            if not Path(json.loads(plan.read_bytes())["model"]).exists():
                shutil.rmtree(plan.parent)
