from __future__ import annotations

import mmap
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tallow.errors import CapacityError, UsageError
from tallow.train.offload.mapped_file import MappedFile

PAGE = mmap.PAGESIZE


def resident_file_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) * 1024


def test_tensors_keep_their_values_when_memory_has_let_go_of_them(tmp_path: Path) -> None:
    file = MappedFile(tmp_path)
    values = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    plain, turned = file.allocate(values.nbytes).tensor(values), file.allocate(values.nbytes).tensor(values.T)
    plain.copy_(values)
    turned.copy_(values.T)
    file.drop([plain, turned])
    assert torch.equal(plain, values)
    assert torch.equal(turned.T, values)
    assert turned.stride() == (1, 2000)
    assert file.holds(plain)
    assert file.holds(plain[2])
    assert not file.holds(values)


def test_what_is_dropped_leaves_memory_and_what_is_wanted_is_in_it(tmp_path: Path) -> None:
    file = MappedFile(tmp_path)
    tensor = file.allocate(16 << 20).tensor(torch.empty(4 << 20))
    before = resident_file_bytes()
    tensor.fill_(1.0)
    assert resident_file_bytes() - before >= 16 << 20
    file.drop([tensor])
    assert resident_file_bytes() - before < 1 << 20
    file.want([tensor])
    assert resident_file_bytes() - before >= 16 << 20


def test_what_is_read_once_does_not_stay(tmp_path: Path) -> None:
    file = MappedFile(tmp_path)
    tensor = file.allocate(16 << 20).tensor(torch.empty(4 << 20))
    before = resident_file_bytes()
    with file.passing():
        tensor.fill_(1.0)
        deadline = time.monotonic() + 60
        while resident_file_bytes() - before > 1 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert bool((tensor == 1).all())


def test_many_tensors_share_few_mappings_and_no_bytes(tmp_path: Path) -> None:
    file = MappedFile(tmp_path)
    tensors = [file.allocate(PAGE * (1 + number % 3)).tensor(torch.empty(1000)) for number in range(200)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [tensor.unique().item() for tensor in tensors] == list(range(200))
    assert len(file._mappings) < 30


def test_there_is_nothing_to_be_left_behind(tmp_path: Path) -> None:
    file = MappedFile(tmp_path / "place")
    file.allocate(PAGE)
    assert list((tmp_path / "place").iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        MappedFile(tmp_path / "file")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_known_before_anything_is_written(small_disk: Path) -> None:
    file = MappedFile(small_disk)
    kept = file.allocate(8 * PAGE).tensor(torch.empty(8 * PAGE // 4))
    with pytest.raises(CapacityError, match="no space left"):
        file.allocate(16 * PAGE)
    kept.fill_(3.0)
    assert bool((kept == 3).all())
    del file, kept  # the disk can only be put away when nothing lies on it
