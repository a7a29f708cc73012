"""Files that are either whole or absent, and content hashes of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tallow.errors import DataError, reading, writing

HASH_BLOCK = 1 << 20
# how names end of what is not whole yet, and of what is being replaced; they begin with a dot
PARTIAL, REPLACED = ".partial", ".old"


@contextmanager
def atomic_file(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the name `path`.

    On any exception the temporary file is removed and what stood at `path` is untouched.

    Args:
        path: Of the file.
        durable: Wait until it is on the disk. Otherwise a machine that loses its power may leave some of it, or none.

    Raises:
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if durable:
                _sync(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            if durable:
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it takes the place of `path`.

    Raises:
        CapacityError: The disk is full.
        UsageError: The parent directory cannot be written.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
        try:
            yield temporary
            publish_directory(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(temporary: Path, path: Path) -> None:
    """Let a directory, once all of it is on the disk, take the place of `path`, which lies beside it."""
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    os.chmod(temporary, 0o777 & ~_umask())
    with _alone_in(path.parent):  # between two renames the place is free: nobody else may take it then
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=REPLACED))
            os.replace(path, old / "old")
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    _sync(path.parent)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait until no other thread or process is in this block for the directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically, two spaces of indentation, keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str, what: str = "file") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing, unreadable, not JSON, or not an object.
    """
    with reading(path, what):
        raw = Path(path).read_bytes()
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is not valid JSON ({error})", "restore it from its source") from error
    if not isinstance(value, dict):
        raise DataError(f"{what} {path} must hold a JSON object", "restore it from its source")
    return value


def read_records(path: Path | str) -> tuple[list[dict[str, Any]], int]:
    """Read a file of one JSON object a line, none if there is no such file.

    Returns:
        The objects whose `step`, if they have one, is a whole number, and how many other lines there are.
    """
    path, records = Path(path), list[dict[str, Any]]()
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("step", 0), int):
            records.append(value)
    return records, len(lines) - len(records)


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with reading(path, "file"), open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_path(path: Path | str) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a directory."""
    path = Path(path)
    if not path.is_dir():
        return hash_file(path)
    return hash_value(
        {str(file.relative_to(path)): hash_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
    )


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_stamps(path: Path | str) -> dict[str, list[int]]:
    """Size and modification time of each file at or below `path`: a cheap sign of a change."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def fingerprint_files(path: Path | str) -> str:
    """A sign of the files at or below `path` as they are now, also of those that were given another's time."""
    path, stamps = Path(path), file_stamps(path)
    return hash_value([stamps, [(path / name).stat().st_ctime_ns for name in stamps]])


def directory_size(path: Path | str) -> int:
    """Bytes of all files at or below `path`."""
    return sum(size for size, _ in file_stamps(path).values())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
