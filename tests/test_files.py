"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tallow.errors import CapacityError, DataError, UsageError
from tallow.files import atomic_directory, atomic_file, hash_path, read_json, write_json, write_text
from tallow.models.formats.tensor_files import write_tensors


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_leaves_the_old_one_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(path) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for name in ("a", "b"):
        with atomic_directory(path) as temporary:
            (temporary / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_many_may_replace_the_same_directory(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with atomic_directory(tmp_path / "product") as temporary:
            write_text(temporary / "file.txt", str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert [path.name for path in tmp_path.iterdir()] == ["product"]
    assert [path.name for path in (tmp_path / "product").iterdir()] == ["file.txt"]


def test_a_full_disk_is_a_capacity_error(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="no space left"), atomic_file(tmp_path / "f"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_the_limit_is_a_capacity_error(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(100_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CapacityError, match="larger than the limit on the size of a file"):
            write_text(tmp_path / "f", "x" * 100_000)
        with pytest.raises(CapacityError, match="larger than the limit on the size of a file"):
            write_tensors(tensors, tmp_path / "f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), atomic_file(tmp_path / "file" / "f"):
        pass


def test_files_get_the_users_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "f.json", {})
    finally:
        os.umask(mask)
    assert (tmp_path / "f.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DataError):
        read_json(tmp_path / "f.json")


def test_a_hash_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = hash_path(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = hash_path(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, second, hash_path(tmp_path)}) == 3


def test_kill_at_random_instants_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    script = (
        "import sys; from tallow.files import atomic_file\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    with atomic_file(sys.argv[1]) as t: t.write_bytes(bytes([65 + i % 26]) * 2_000_000)\n"
    )
    for delay in (0.01, 0.037, 0.08):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1
