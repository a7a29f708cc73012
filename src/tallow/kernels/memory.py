"""How much memory there is, and how much of it is free."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CGROUP_LIMIT = CGROUP / "memory.max"
# limit, use, and what of the use is file cache, which gives way
V2_FILES = ("memory.max", "memory.current", "active_file", "inactive_file")
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")

# of glibc's malloc.h, and its defaults
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 << 10, 65536
ADAPTED_MMAP_THRESHOLD = 32 << 20
"""To which it raises this itself, unless it has been set, where a program frees large pieces."""
NEVER, ANY = -1, 0
LARGE = 256 << 10
LARGE_PAGE = 2 << 20


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within this block, memory that is freed stays with the process and is used again; at the end it is given back.

    Otherwise the C library gives each large tensor back to the system when it is freed, and for each new one the system
    clears pages: a quarter of a training step's time. The pages are large where the system lets programs ask for them,
    which saves one to three hundredths more. For the thread that started Python; only glibc can do so.
    """
    if (libc := _glibc()) is None:
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    _ask_for_large_pages(libc)
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Let all that is allocated from now on lie on large pages.

    Room for it is taken at once and freed untouched, so that it costs nothing, but is of one kind.
    """
    if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        return  # such a limit counts what is never touched, too
    room = free_bytes() // 2
    libc.malloc.restype = ctypes.c_void_p
    if (start := libc.malloc(ctypes.c_size_t(room))) is None:
        return
    inside = -start % LARGE_PAGE
    libc.madvise(ctypes.c_void_p(start + inside), ctypes.c_size_t(room - inside), mmap.MADV_HUGEPAGE)
    libc.free(ctypes.c_void_p(start))


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Within this block what is large goes back to the system once it is freed; for work at texts part by part.

    Otherwise the C library keeps it for later, some for each thread: more than is in use. Only glibc can do so.
    """
    if (libc := _glibc()) is None:
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LARGE)
    libc.mallopt(ARENA_MAX, 1)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, ADAPTED_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * ADAPTED_MMAP_THRESHOLD)
        libc.mallopt(ARENA_MAX, ANY)


def return_freed_memory() -> None:
    """Have the C library give back to the system what is freed between what is in use; only glibc can do so."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def machine_bytes(device: str = "cpu") -> int:
    """Memory of this machine, or what of it the container that the process runs in, or its own limits, leave it; of a
    GPU its own."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info()[1]
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # no such limit ("max")
        limits.append(int(CGROUP_LIMIT.read_text()))
    own = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return min([*limits, *(limit for limit in own if limit != resource.RLIM_INFINITY)])


def free_bytes(*, mapped: bool = False) -> int:
    """Memory that this process can still take, that of the system's file caches included.

    Args:
        mapped: For pages of mapped files; a limit on a process's own data (`ulimit -d`) does not count them.
    """
    try:
        free = [_kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024]
    except OSError:  # not Linux
        return machine_bytes()
    free += [limit - used for limit, used in _cgroup_use()]
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if not mapped and limit != resource.RLIM_INFINITY:
        free.append(limit - _kilobytes(Path("/proc/self/status"), "VmData") * 1024)
    return max(0, min(free))


def _kilobytes(file: Path, field: str) -> int:
    return int(file.read_text().partition(f"{field}:")[2].split()[0])


def _cgroup_use() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes, without file caches, of each control group with a limit that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, files = (CGROUP, V2_FILES) if controllers == "" else (CGROUP / "memory", V1_FILES)
        place = root / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(root):
                break
            try:
                limit, used = (int((group / name).read_text()) for name in files[:2])
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit ("max"), or the root of all
                continue
            yield limit, used - sum(int(stat.get(key, 0)) for key in files[2:])
