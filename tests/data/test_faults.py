"""What the stages leave behind when the disk is full, the place is not writable, or the process is killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallow.data.config import PrepareConfig
from tallow.data.encode import EncodeConfig, encode
from tallow.data.prepare import prepare
from tallow.errors import CapacityError, UsageError
from tallow.files import hash_path
from tallow.run import StageRun

Stage = Callable[[Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    lines = (json.dumps({"text": f"{number} " * (number % 90 + 1)}) + "\n" for number in range(3000))
    path.write_text("".join(lines))
    return path


@pytest.fixture(params=["prepare", "encode"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, source: Path, tokenizer_directory: Path) -> Stage:
    """`stage(directory)` runs prepare or encode there."""
    if request.param == "prepare":
        return lambda directory: void(prepare(PrepareConfig(sources=(source,)), StageRun(directory)))
    prepare(PrepareConfig(sources=(source,)), StageRun(tmp_path / "prepared"))
    config = EncodeConfig(
        documents=tmp_path / "prepared" / "documents", tokenizer=tokenizer_directory, shard_tokens=50_000
    )
    return lambda directory: void(encode(config, StageRun(directory)))


def void(_result: object) -> None:
    return None


def products(run: Path) -> list[str]:
    """What is in a run's directory besides what is kept to go on with."""
    return [path.name for path in run.iterdir() if path.name != "work"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB, where this process may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here; test_write_that_finds_no_space does without")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk(tiny_disk: Path, stage: Stage) -> None:
    with pytest.raises(CapacityError, match="no space left on the disk"):
        stage(tiny_disk / "run")
    assert products(tiny_disk / "run") == []


@pytest.mark.parametrize(
    ("stage", "write"),
    [
        ("prepare", "pyarrow.ipc.RecordBatchFileWriter.write_batch"),  # the spool
        ("prepare", "pyarrow.parquet.ParquetWriter.write_table"),
        ("prepare", "tallow.data.manifest.write_json"),
        ("encode", "numpy.lib.format.write_array_header_1_0"),
        ("encode", "numpy.save"),
        ("encode", "pyarrow.parquet.ParquetWriter.write_table"),
        ("encode", "tallow.data.manifest.write_json"),
    ],
    indirect=["stage"],
)
def test_write_that_finds_no_space(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, full)
    with pytest.raises(CapacityError, match="no space left on the disk"):
        stage(tmp_path / "run")
    assert products(tmp_path / "run") == []


def test_place_that_is_no_directory(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        stage(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "in the way"


def test_directory_that_may_not_be_written(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is simulated: to a superuser a directory is never read-only."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError, match="cannot be written: Permission denied") as caught:
        stage(tmp_path / "run")
    assert "another place" in caught.value.hint


KILLED = """
import os, signal, sys
from unittest.mock import patch
from tallow.data.encode import EncodeConfig, encode
from tallow.data.config import PrepareConfig
from tallow.data.prepare import prepare
from tallow.run import StageRun

stage, instant, directory, *inputs = sys.argv[1:]

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

with patch(instant, die):
    if stage == "prepare":
        prepare(PrepareConfig(sources=inputs), StageRun(directory))
    else:
        config = EncodeConfig(documents=inputs[0], tokenizer=inputs[1], shard_tokens=50_000)
        encode(config, StageRun(directory))
"""


@pytest.mark.parametrize(
    ("stage_name", "instant"),
    [
        ("prepare", "pyarrow.ipc.RecordBatchFileWriter.write_batch"),
        ("prepare", "pyarrow.parquet.ParquetWriter.close"),
        ("prepare", "os.replace"),
        ("encode", "numpy.save"),
        ("encode", "tallow.data.encode.save_manifest"),
        ("encode", "os.fsync"),
    ],
)
def test_killed_process_leaves_no_half_product(
    tmp_path: Path, source: Path, tokenizer_directory: Path, stage_name: str, instant: str
) -> None:
    prepare_config = PrepareConfig(sources=(source,))
    prepare(prepare_config, StageRun(tmp_path / "whole"))
    documents = tmp_path / "whole" / "documents"
    encode_config = EncodeConfig(documents=documents, tokenizer=tokenizer_directory, shard_tokens=50_000)
    inputs = [str(source)] if stage_name == "prepare" else [str(documents), str(tokenizer_directory)]
    run = tmp_path / "killed"
    child = [sys.executable, "-c", KILLED, stage_name, instant, str(run), *inputs]
    assert subprocess.run(child, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert [name for name in products(run) if not name.endswith(".partial")] == []

    if stage_name == "prepare":
        prepare(prepare_config, StageRun(run))
        assert hash_path(run / "documents") == hash_path(documents)
    else:
        encode(encode_config, StageRun(run))
        encode(encode_config, StageRun(tmp_path / "whole"))
        assert hash_path(run / "tokens") == hash_path(tmp_path / "whole" / "tokens")
