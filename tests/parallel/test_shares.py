from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from tallow.parallel.shares import own_share, with_share


@pytest.fixture
def mesh_of_gpus() -> Iterator[DeviceMesh]:
    """Of one process; no GPU is asked for until something is to go there."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield DeviceMesh("cuda", [0], _init_backend=False)
    finally:
        dist.destroy_process_group()


def test_a_share_on_the_cpu_of_what_gpus_divide_stays_there(mesh_of_gpus: DeviceMesh) -> None:
    divided = DTensor.from_local(torch.empty(3, 2, device="meta"), mesh_of_gpus, [Shard(0)], run_check=False)
    share = torch.arange(6.0).view(3, 2)
    placed = with_share(divided, share)
    assert isinstance(placed, DTensor)
    assert own_share(placed).data_ptr() == share.data_ptr()
    assert placed.placements == divided.placements
    assert placed.shape == divided.shape
