from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tallow.errors import CapacityError, UsageError
from tallow.files import hash_file, read_json, write_json
from tallow.parallel import ALONE, ParallelConfig
from tallow.parallel.mesh import Mesh
from tallow.train import checkpoint
from tallow.train.checkpoint import STATE, Checkpoints, FileRecord
from tallow.train.checkpoint_files import Shares, write_shares
from tallow.train.config import LoopConfig
from tallow.train.counters import Counters
from tallow.train.optimizer import make_optimizer
from tallow.train.optimizers.joint import JointOptimizer

TENSORS, PART = "part-00000.safetensors", "part-00000.json"
Parameters = dict[str, nn.Parameter]


def trained(seed: int, steps: int = 3) -> tuple[Parameters, JointOptimizer]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        "layer.weight": nn.Parameter(torch.randn(4, 3, generator=generator)),
        "layer.bias": nn.Parameter(torch.randn(4, generator=generator)),
    }
    optimizer = make_optimizer(parameters, LoopConfig())
    for _ in range(steps):
        update(parameters, optimizer, generator)
    return parameters, optimizer


def update(parameters: Parameters, optimizer: JointOptimizer, generator: torch.Generator) -> None:
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def checkpoints(
    directory: Path, pair: tuple[Parameters, JointOptimizer], identity: object = 1, keep: int = 2
) -> Checkpoints:
    mesh = Mesh(ParallelConfig(), ALONE)
    return Checkpoints(directory / "checkpoints", pair[0], pair[1], {"settings": identity}, keep, mesh)


def save(kept: Checkpoints, step: int, counters: Counters | None = None) -> None:
    kept.begin(step, counters or Counters())
    kept.finish()


def saved_twice(directory: Path) -> dict[str, torch.Tensor]:
    """Leave checkpoints of steps 3 and 4; the weights of the first."""
    pair = trained(0)
    kept = checkpoints(directory, pair)
    save(kept, 3)
    weights = {name: parameter.clone() for name, parameter in pair[0].items()}
    update(*pair, torch.Generator().manual_seed(0))
    save(kept, 4)
    return weights


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_what_is_restored_goes_on_alike_bit_for_bit(tmp_path: Path) -> None:
    first = trained(seed=0)
    save(checkpoints(tmp_path, first), 3, Counters(tokens=48))
    second = trained(seed=1, steps=0)
    assert checkpoints(tmp_path, second).restore() == (3, Counters(tokens=48))
    for pair in (first, second):
        generator = torch.Generator().manual_seed(9)
        for _ in range(3):
            update(*pair, generator)
    for name, parameter in first[0].items():
        assert torch.equal(parameter, second[0][name])


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    save(checkpoints(tmp_path, trained(0)), 3)
    assert names(tmp_path) == ["step-00000003"]
    files = (tmp_path / "checkpoints" / "step-00000003").iterdir()
    assert sorted(path.name for path in files) == [PART, TENSORS, STATE]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, trained(0), keep=2)
    for step in (1, 2, 10, 100000000):
        save(kept, step)
    assert names(tmp_path) == ["step-00000010", "step-100000000"]
    assert kept.restore()[0] == 100000000


def test_damaged_ones_of_later_steps_do_not_count_among_the_newest(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, trained(0), keep=1)
    for step in (3, 5):
        save(checkpoints(tmp_path, trained(0), keep=2), step)
    (tmp_path / "checkpoints" / "step-00000005" / TENSORS).unlink()
    assert kept.restore()[0] == 3
    save(kept, 4)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    assert kept.restore()[0] == 4


def test_nothing_there_is_step_zero(tmp_path: Path) -> None:
    assert checkpoints(tmp_path, trained(0)).restore() == (0, Counters())


@pytest.mark.parametrize("file", [TENSORS, PART, STATE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "garbage", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    expected = saved_twice(tmp_path)
    path = tmp_path / "checkpoints" / "step-00000004" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        if file == STATE:  # a flip in JSON has to hit something that counts
            flipped = content.replace(b'"step": 4', b'"step": 5')
        damaged = {
            "truncated": content[: len(content) // 2],
            "flipped": flipped,
            "garbage": os.urandom(99),
            "empty": b"",
        }
        path.write_bytes(damaged[damage])

    other = trained(1)
    assert checkpoints(tmp_path, other).restore()[0] == 3
    assert all(torch.equal(parameter, expected[name]) for name, parameter in other[0].items())
    said = capsys.readouterr().err
    assert "step-00000004" in said
    assert "passed over" in said


def record(path: Path) -> dict[str, object]:
    return FileRecord(bytes=path.stat().st_size, sha256=hash_file(path)).model_dump()


def with_hashes(directory: Path) -> None:
    """Let a checkpoint's files say that its tensors are as they were written."""
    part, state = read_json(directory / PART), read_json(directory / STATE)
    part["tensors"] = record(directory / TENSORS)
    write_json(directory / PART, part)
    state["parts"] = {PART: record(directory / PART)}
    write_json(directory / STATE, state)


def no_parts(directory: Path) -> None:
    write_json(directory / STATE, read_json(directory / STATE) | {"parts": {}})


def another_part(directory: Path) -> None:
    (directory / "part-00009.safetensors").write_bytes(os.urandom(99))


def no_tensors(directory: Path) -> None:
    (directory / TENSORS).write_bytes(os.urandom(99))
    with_hashes(directory)


def endless_header(directory: Path) -> None:
    (directory / TENSORS).write_bytes((2**62).to_bytes(8, "little") + os.urandom(99))
    with_hashes(directory)


def with_biases(directory: Path, biases: dict[str, torch.Tensor]) -> None:
    with safe_open(directory / TENSORS, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
    del tensors["model/layer.bias"]
    save_file(tensors | biases, directory / TENSORS, metadata)
    with_hashes(directory)


def a_weight_less(directory: Path) -> None:
    with_biases(directory, {})


def another_shape(directory: Path) -> None:
    with_biases(directory, {"model/layer.bias": torch.zeros(5)})


def no_counters(directory: Path) -> None:
    write_json(directory / STATE, read_json(directory / STATE) | {"counters": {"tokens": -1, "workers": []}})


FORGERIES = [no_parts, another_part, no_tensors, endless_header, a_weight_less, another_shape, no_counters]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_forged_checkpoint_is_passed_over(tmp_path: Path, forge: Callable[[Path], None]) -> None:
    expected = saved_twice(tmp_path)
    forge(tmp_path / "checkpoints" / "step-00000004")
    other = trained(1)
    assert checkpoints(tmp_path, other).restore()[0] == 3
    assert all(torch.equal(parameter, expected[name]) for name, parameter in other[0].items())


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path, trained(0))
    save(kept, 3)
    partial = tmp_path / "checkpoints" / ".step-00000004.abc.partial"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000003", partial)
    assert kept.restore()[0] == 3
    kept.remove_leftovers()
    assert names(tmp_path) == ["step-00000003"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    save(checkpoints(tmp_path, trained(0), identity={"steps": 10}), 3)
    with pytest.raises(UsageError, match="settings"):
        checkpoints(tmp_path, trained(0), identity={"steps": 11}).restore()


def full_disk(_tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    kept = checkpoints(tmp_path, trained(0), keep=1)
    save(kept, 3)
    monkeypatch.setattr(checkpoint, "write_shares", full_disk)
    kept.begin(4, Counters(), in_background=in_background)
    with pytest.raises(CapacityError, match="no space"):
        kept.finish()
    assert names(tmp_path) == ["step-00000003"]
    assert kept.restore()[0] == 3


def test_what_is_written_in_the_background_is_what_there_was_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, wait = trained(0), threading.Event()

    def slow(tensors: Shares, path: Path) -> None:
        wait.wait(10)
        write_shares(tensors, path)

    monkeypatch.setattr(checkpoint, "write_shares", slow)
    kept = checkpoints(tmp_path, pair)
    kept.begin(3, Counters(tokens=5), in_background=True)
    assert not kept.written
    expected = {name: parameter.clone() for name, parameter in pair[0].items()}
    update(*pair, torch.Generator().manual_seed(0))
    wait.set()
    kept.finish()
    other = trained(1)
    assert checkpoints(tmp_path, other).restore() == (3, Counters(tokens=5))
    assert all(torch.equal(parameter, expected[name]) for name, parameter in other[0].items())
