"""What processes with GPUs do among themselves, as far as it can be seen without one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tests.parallel.layouts import together

from tallow.parallel import ParallelConfig, World, world
from tallow.parallel.mesh import Mesh


def test_numbers_go_by_gloo_and_what_is_on_gpus_by_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world._backend() == "gloo" or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert world._backend() == "cpu:gloo,cuda:nccl"


def meet_with_two_backends(_joined: World) -> None:
    """Make all groups of a mesh in a world with a backend for each kind of device."""
    dist.destroy_process_group()
    was, world._backend = world._backend, lambda: "cpu:gloo,cuda:gloo"
    with world.join_world() as joined:
        mesh = Mesh(ParallelConfig(context=2, zero=1), joined)
        groups = [dist.group.WORLD, mesh.context.group, *mesh.grid.get_all_groups()]
        for group in groups:
            assert isinstance(group, dist.ProcessGroup)
            assert {device.type for device in group._device_types} == {"cpu", "cuda"}
        assert mesh.context.sum(joined.rank + 1) == [3.0]
        assert mesh.tokens.sum(joined.rank + 1) == [3.0]
    world._backend = was
    dist.init_process_group("gloo", rank=joined.rank, world_size=joined.size)


def test_each_group_of_processes_sends_what_is_on_either_kind_of_device() -> None:
    together(2, meet_with_two_backends)
