"""What is told of tensors that processes hold shares of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


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
    shares: dict[tuple[DeviceMesh, tuple[int, ...]] | None, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            divided = tuple(number for number, place in enumerate(tensor.placements) if not place.is_replicate())
            shares[tensor.device_mesh, divided].append(tensor.to_local())
        else:
            shares[None].append(tensor)
    total = 0.0
    for where, parts in shares.items():
        square = torch.nn.utils.get_total_norm(parts).double().square()
        if where is not None:
            mesh, dimensions = where
            for dimension in dimensions:
                dist.all_reduce(square, group=mesh.get_group(dimension))
        total += square.item()
    return total
