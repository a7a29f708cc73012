"""ZeRO by PyTorch's FSDP2: those that share the rows divide weights, gradients and optimizer state (arXiv 1910.02054).

FSDP2 keeps each parameter cut by its first dimension, gathers those of a layer before it computes, and sums gradients
so that each process gets its own share of them. The next layer's weights and the last layer's gradients travel while a
layer computes.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(
    learner: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, *, whole: set[nn.Parameter], free_weights: bool
) -> None:
    """Divide the parameters of a module over the processes of a mesh, in place.

    Args:
        learner: Computes a loss; no parameter is used but in its `forward`.
        layers: Parts of it whose parameters travel together; the rest is one part more.
        mesh: The processes in one dimension, or in two: replicas, and those that divide one among them.
        whole: Parameters that each process keeps whole.
        free_weights: Others' weights are given back between forward and backward pass.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=free_weights, ignored_params=whole)
    # the last part's weights are wanted again at once, so they stay
    fully_shard(learner, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
    for module in learner.modules():
        if isinstance(module, FSDPModule):
            # gradients are of the summed loss; their mean is taken once the number of targets is known
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
