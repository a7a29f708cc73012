"""Tensors that processes hold shares of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros
from torch.distributed.tensor.placement_types import _StridedShard  # a shard of a shard

from tallow.parallel.mesh import Mesh


def own_gradient(parameter: nn.Parameter) -> Tensor:
    """This process's share of a parameter's gradient; zero where there is none.

    What processes that share the parameter have each computed of a part of the gradient is summed first.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        assert isinstance(parameter, DTensor)
        if gradient.placements != parameter.placements:
            parameter.grad = gradient = gradient.redistribute(placements=parameter.placements)
        return gradient.to_local()
    return gradient


def squared_norm(tensors: Iterable[Tensor]) -> float:
    """Sum of the squares of all entries; of a tensor that is divided, of all its shares. All processes must call it."""
    shares: dict[tuple[torch.device, tuple[DeviceMesh, tuple[int, ...]] | None], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            divided = tuple(number for number, place in enumerate(tensor.placements) if not place.is_replicate())
            shares[tensor.device, (tensor.device_mesh, divided)].append(tensor.to_local())
        else:
            shares[tensor.device, None].append(tensor)
    squares: dict[torch.device, list[Tensor]] = defaultdict(list)
    for (device, where), parts in shares.items():
        square = torch.nn.utils.get_total_norm(parts).double().square()
        if where is not None:
            mesh, dimensions = where
            for dimension in dimensions:
                dist.all_reduce(square, group=mesh.get_group(dimension))
        squares[device].append(square)
    return sum(sum(torch.stack(found).tolist()) for found in squares.values())  # at once, since it waits for a GPU


def is_written_here(tensor: Tensor, mesh: Mesh) -> bool:
    """Whether it is for this process to write its share of a tensor, or the whole one, to a file.

    Of those that have the same share it is the first one.
    """
    alike = mesh.place
    if isinstance(tensor, DTensor):
        own, names = tensor.device_mesh.get_coordinate(), tensor.device_mesh.mesh_dim_names
        assert own is not None
        assert names is not None
        if any(number for number, place in zip(own, tensor.placements, strict=True) if place.is_replicate()):
            return False
        # over a grid of other dimensions nothing tells who else has it; that it is written twice does no harm
        alike = (
            {name: number for name, number in alike.items() if name not in names} if alike.keys() >= set(names) else {}
        )
    return not any(alike.values())


def like_share(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor that belongs to a parameter, divided as that one is where their shapes allow it.

    Else all processes that divide the parameter have all of it; a single number is no DTensor.
    """
    if not isinstance(parameter, DTensor) or not shape:
        return torch.empty(shape, dtype=dtype, device=parameter.device)
    if shape == parameter.shape:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    divided = {place.dim for place in parameter.placements if isinstance(place, Shard | _StridedShard)}
    placements = parameter.placements
    if len(shape) != parameter.ndim or any(shape[number] != parameter.shape[number] for number in divided):
        placements = tuple(Replicate() for _ in placements)
    empty = zeros(shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=placements)
    return empty.to(parameter.device)  # which need not be that of the mesh


def writable(tensor: Tensor, parameter: Tensor | None) -> Tensor:
    """A tensor that belongs to a parameter, divided so that each process has a stretch of it.

    What was computed of divided tensors need not be: there are sums whose parts processes hold, and shares with gaps.
    All processes that divide the parameter must call it.
    """
    if not isinstance(tensor, DTensor) or (
        isinstance(parameter, DTensor) and tensor.placements == parameter.placements
    ):
        return tensor
    if all(place.is_replicate() or type(place) is Shard for place in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() for _ in tensor.placements])


def own_share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_share(tensor: Tensor, share: Tensor) -> Tensor:
    """A tensor divided as another one, of which this process has this share; the share where that one is whole."""
    if not isinstance(tensor, DTensor):
        return share
    # `from_local` would bring a share on the CPU to the GPUs of the mesh
    return DTensor(share, tensor._spec, requires_grad=False)


def put_share(tensor: Tensor, share: Tensor) -> None:
    """Let a tensor be where a share of it is that has the same values as its own."""
    if isinstance(tensor, DTensor):
        tensor._local_tensor = share
    else:
        tensor.data = share


def whole_tensor(tensor: DTensor) -> Tensor:
    """All of it. All processes of its mesh must call it."""
    placements = list(tensor.placements)
    for number in range(len(placements)):  # one after the other: at once, PyTorch would warn that it does just that
        placements[number] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()
