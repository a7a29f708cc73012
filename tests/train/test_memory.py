from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from tallow.errors import CapacityError
from tallow.kernels import memory
from tallow.kernels.memory import machine_bytes
from tallow.models.config import DecoderConfig
from tallow.train.config import LoopConfig
from tallow.train.memory import check_memory, training_bytes

SMALL = DecoderConfig(vocab_size=4096)


def test_estimate_has_the_state_and_grows_with_the_micro_batch() -> None:
    parameters = 6_163_712
    one, all_at_once = (training_bytes(SMALL, LoopConfig(batch_size=16, micro_batch_size=size)) for size in (1, None))
    assert 16 * parameters < one < 16 * parameters + 50e6
    assert all_at_once - one > 14 * (one - 16 * parameters - 3 * 4 * 256 * 4096)


def test_what_is_on_disk_does_not_count() -> None:
    embeddings = 4096 * 256 + 256
    plain, state, both = (
        training_bytes(SMALL, LoopConfig.model_validate({"offload": offload}))
        for offload in ({}, {"state": "disk"}, {"state": "disk", "parameters": "disk"})
    )
    assert plain - state == 8 * 6_163_712
    assert state - both == 4 * (6_163_712 - embeddings)


def test_of_a_gpu_what_is_in_the_memory_of_the_cpu_does_not_count() -> None:
    embeddings, weights = 4096 * 256 + 256, 6_163_712
    gpu = torch.device("cuda", 0)
    for offload, spared in (
        ({"state": "cpu"}, 8 * weights),
        ({"parameters": "cpu"}, 8 * weights + 8 * (weights - embeddings)),
    ):
        loop = LoopConfig.model_validate({"offload": offload})
        plain = training_bytes(SMALL, LoopConfig())
        assert training_bytes(SMALL, loop) == plain
        assert plain - training_bytes(SMALL, loop, gpu) == spared


def test_all_experts_are_state_and_the_chosen_ones_compute() -> None:
    one, two = (
        SMALL.model_copy(update={"num_experts": 4, "experts_per_token": chosen, "num_layers": 1}) for chosen in (1, 2)
    )
    dense, loop = SMALL.model_copy(update={"num_layers": 1}), LoopConfig()
    assert training_bytes(two, loop) - training_bytes(one, loop) == 6 * 768 * loop.batch_size * loop.sequence_length
    assert training_bytes(one, loop) - training_bytes(dense, loop) == 16 * 256 * (3 * 3 * 768 + 4)


def test_what_cannot_fit_is_refused_with_figures() -> None:
    huge = DecoderConfig(vocab_size=128_000, hidden_size=8192, num_layers=80, num_heads=64, num_kv_heads=8)
    with pytest.raises(CapacityError, match=r"at least [\d.]+ GB"):
        check_memory(huge, LoopConfig())
    check_memory(SMALL, LoopConfig())


def test_a_container_may_have_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    machine = machine_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_bytes() == machine
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_bytes() == 1_000_000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (500_000, -1) if kind == resource.RLIMIT_DATA else (-1, -1))
    assert machine_bytes() == 500_000
