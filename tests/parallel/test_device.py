"""What processes with GPUs do among themselves, as far as it can be seen without one."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.parallel.layouts import make, rows_of, together
from tests.train.toys import loop_config
from torch._C._distributed_c10d import HashStore

from tallow.files import read_json, write_json
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout, ParallelConfig, World, world
from tallow.parallel.device import CPU
from tallow.parallel.mesh import Mesh
from tallow.train.float8 import Float8Linear, use_float8
from tallow.train.update import Updater


def test_numbers_go_by_gloo_and_what_is_on_gpus_by_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world._backend() == "gloo" or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert world._backend() == "cpu:gloo,cuda:nccl"


def meet_with_two_backends(_joined: World) -> None:
    """Make all groups of a mesh in a world with a backend for each kind of device."""
    port = torch.zeros((), dtype=torch.int64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dist.broadcast(port.fill_(free.getsockname()[1]), 0)
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(int(port))  # who is quick must not meet at the store of before
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
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)  # one to be left


def test_each_group_of_processes_sends_what_is_on_either_kind_of_device() -> None:
    together(2, meet_with_two_backends)


def learn_in_float8(world: World, directory: Path, layouts: Mapping[str, Mapping[str, int]]) -> None:
    """Note the loss and the gradient's norm of one update in each layout."""
    for name, settings in layouts.items():
        config = ParallelConfig.model_validate(settings)
        model = make("decoder", 0, layers=2)
        use_float8(model, CPU, config.tensor)
        layout = Layout(model, config, world)
        assert any(isinstance(module, Float8Linear) for module in model.modules())
        loop = loop_config(precision="float8")
        rows = rows_of(0).rows(slice(layout.mesh.data.rank, None, layout.mesh.data.size))
        update = Updater(layout, causal, loop).update(1, [rows], 1e-3, "float8")
        if world.is_main:
            write_json(directory / f"{name}.json", {"loss": update.loss, "norm": update.gradient_norm})


def test_float8_layers_can_be_spread_over_processes(tmp_path: Path) -> None:
    learn_in_float8(ALONE, tmp_path, {"alone": {}})
    layouts = {"rows": {}, "zero": {"zero": 3}, "tensor": {"tensor": 2}}
    together(2, learn_in_float8, tmp_path, layouts)
    alone = read_json(tmp_path / "alone.json")
    for name in layouts:
        # each process scales what it has itself, so that they round otherwise
        assert read_json(tmp_path / f"{name}.json") == pytest.approx(alone, rel=0.02), name
