"""ZeRO by PyTorch's FSDP2: those that share the rows divide weights, gradients and optimizer state (arXiv 1910.02054).

FSDP2 keeps each parameter cut by its first dimension, gathers those of a layer before it computes, and sums gradients
so that each process gets its own share of them. The next layer's weights and the last layer's gradients travel while a
layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import Shard


def shard(
    learner: nn.Module,
    layers: Iterable[nn.Module],
    mesh: DeviceMesh,
    *,
    experts: Iterable[nn.Module] = (),
    experts_mesh: DeviceMesh | None = None,
    whole: set[nn.Parameter],
    free_weights: bool,
    on_host: bool = False,
) -> None:
    """Divide the parameters of a module over the processes of a mesh, in place.

    Args:
        learner: Computes a loss; no parameter is used but in its `forward`.
        layers: Parts of it whose parameters travel together; the rest is one part more.
        mesh: The processes in one dimension, or in two: replicas, and those that divide one among them.
        experts: Parts of the layers that others of the processes have the same parameters of.
        experts_mesh: Those processes, likewise.
        whole: Parameters that each process keeps whole.
        free_weights: Others' weights are given back between forward and backward pass.
        on_host: This process's shares, and its gradients, are in the memory of the CPU while they are not used.
    """
    place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if on_host else OffloadPolicy()
    for module in experts:
        assert experts_mesh is not None
        across = _across_experts(module, experts_mesh["shard"].size())
        fully_shard(
            module,
            mesh=experts_mesh,
            reshard_after_forward=free_weights,
            shard_placement_fn=across,
            offload_policy=place,
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=free_weights, offload_policy=place, ignored_params=whole)
    # the last part's weights are wanted again at once, so they stay
    fully_shard(learner, mesh=mesh, reshard_after_forward=False, offload_policy=place, ignored_params=whole)
    for module in learner.modules():
        if isinstance(module, FSDPModule):
            # gradients are of the summed loss; their mean is taken once the number of targets is known
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _across_experts(experts: nn.Module, processes: int) -> Callable[[nn.Parameter], Shard]:
    """By which dimension parameters are cut: not by expert once more, of which there may be too few, if it can be."""
    even = all(parameter.shape[1] % processes == 0 for parameter in experts.parameters())
    return lambda _: Shard(1 if even else 0)


def sharding_mesh(grid: DeviceMesh) -> DeviceMesh:
    """Of all processes those that divide parameters among them, with replicas as another dimension if there are any."""
    return grid["replicate", "shard"] if grid["replicate"].size() > 1 else grid["shard"]
