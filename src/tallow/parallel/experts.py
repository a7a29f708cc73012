"""Expert parallelism: processes with other tokens share the experts of a layer (GShard; arXiv 2006.16668, section 3).

Each process routes its own tokens, sends each to the processes that have its experts, computes what has come for its
own experts, and sends the results back. So experts see the tokens of all, and the gradients of their weights are those
of all tokens of their group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from tallow.errors import UsageError
from tallow.models.blocks.mixture import Experts, Stack, compute_experts
from tallow.parallel.exchange import exchange
from tallow.parallel.world import World


class SharedExperts(Experts):
    """Experts of which this process has some; all that share them must call them equally often.

    Args:
        experts: All of them, which lose their weights.
        grid: All processes; those that share experts are its dimension `expert`, and what is divided already is so
            over its dimension `tensor`.
        world: Those that share them, as a group of their own.
    """

    def __init__(self, experts: Experts, grid: DeviceMesh, world: World) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.activation, self.world = experts.num_experts, experts.activation, world
        self.gate_proj, self.up_proj, self.down_proj = experts.gate_proj, experts.up_proj, experts.down_proj
        for stack in (self.gate_proj, self.up_proj, self.down_proj):
            weight = stack.weight.detach()
            whole = weight.to_local() if isinstance(weight, DTensor) else weight
            mine = whole.chunk(world.size)[world.rank].clone()
            if isinstance(weight, DTensor):
                divided = DTensor.from_local(mine, grid["expert", "tensor"], [Shard(0), *weight.placements])
            else:
                divided = DTensor.from_local(mine, grid["expert"], [Shard(0)])
            stack.weight = nn.Parameter(divided, stack.weight.requires_grad)

    def compute(self, x_MD: Tensor, loads_E: Tensor) -> Tensor:
        loads_Pe = loads_E.unflatten(0, (self.world.size, -1))  # of each process's experts
        coming_Pe = exchange(loads_Pe, self.world)  # from each process, for those of this one
        sent, received = loads_Pe.sum(1).tolist(), coming_Pe.sum(1).tolist()
        x_ND = exchange(x_MD, self.world, sent, received)
        experts_N = torch.arange(coming_Pe.numel(), device=x_MD.device) % coming_Pe.shape[1]
        order_N = experts_N.repeat_interleave(coming_Pe.flatten()).argsort(stable=True)
        gates, ups, downs = (_local(stack) for stack in (self.gate_proj, self.up_proj, self.down_proj))
        out_ND = compute_experts(x_ND[order_N], coming_Pe.sum(0), gates, ups, downs, self.activation)
        return exchange(out_ND[order_N.argsort()], self.world, received, sent)


def share_experts(model: nn.Module, grid: DeviceMesh, world: World) -> list[SharedExperts]:
    """Divide the experts of each layer of a model among processes, in place.

    Args:
        grid: All processes, as `SharedExperts` has it.
        world: Those that share experts, as a group of their own.

    Raises:
        UsageError: There are none, or they cannot be divided.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Experts)
    ]
    if not places:
        raise UsageError(
            f"loop.parallel.expert is {world.size}, but the model has no experts", "set it to 1, or model.num_experts"
        )
    shared: list[SharedExperts] = []
    for parent, name, experts in places:
        if experts.num_experts % world.size:
            raise UsageError(
                f"loop.parallel.expert is {world.size}, which does not divide {experts.num_experts} experts",
                "choose a divisor",
            )
        shared.append(SharedExperts(experts, grid, world))
        setattr(parent, name, shared[-1])
    return shared


def _local(stack: Stack) -> Tensor:
    """This process's part of the weights, which another division may have put in place of them already, E O I."""
    return stack.weight.to_local() if isinstance(stack.weight, DTensor) else stack.weight
