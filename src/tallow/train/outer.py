"""The outer optimizer of workers that each train a model of their own for a while (DiLoCo, arXiv 2311.08105).

Each round all begin with the same weights. In its end the mean of what the workers have changed is taken for a gradient
(the paper's algorithm 1), of which SGD with Nesterov's momentum makes the weights of the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tallow.parallel.shares import own_share
from tallow.parallel.workers import Workers
from tallow.parallel.world import buckets


class OuterOptimizer:
    """Remembers what a round began with, and makes of it and of its end what the next one begins with.

    Each process keeps its own shares of all this, whatever the workers' processes divide, and exchanges them with the
    same shares of the other workers. In this it needs two numbers more for each weight.

    Args:
        parameters: What is trained, by name; all workers must have the same weights by now.
        moved: What changes without a gradient, by name; of these the mean is taken.
        workers: Who takes part.
        learning_rate: Of the outer updates; 1 without momentum makes them the mean of the workers' weights.
        momentum: Likewise.
        dtype: In which the changes travel.

    Attributes:
        start: The weights that the round began with, by name, divided as the parameters are.
        momenta: Of the parameters, likewise.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        moved: Mapping[str, nn.Parameter],
        workers: Workers,
        learning_rate: float,
        momentum: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters, self.workers = {**parameters, **moved}, workers
        self.learning_rate, self.momentum, self.dtype = learning_rate, momentum, dtype
        self.start = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.momenta = {name: torch.zeros_like(value.detach()) for name, value in parameters.items()}

    @torch.no_grad()
    def step(self) -> None:
        """End a round: all workers have the same weights afterwards. All processes must call it."""
        changes = {name: self._change(name) for name in self.parameters}
        world = self.workers.peers
        sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        for bucket in buckets(list(changes.values())) if world.size > 1 else []:
            flat = torch.cat([change.flatten() for change in bucket]).div_(world.size).to(self.dtype)
            work = dist.all_reduce(flat, group=world.group, async_op=True)
            assert work is not None
            sent.append((bucket, flat, work))
        for bucket, flat, work in sent:
            work.wait()
            for change, mean in zip(bucket, flat.split([change.numel() for change in bucket]), strict=True):
                change.copy_(mean.view_as(change))
        self._apply(changes)

    @torch.no_grad()
    def step_from(self, weights_of: Callable[[int], Mapping[str, Tensor]], workers: int) -> None:
        """End a round of other workers than those that there are now.

        Args:
            weights_of: The weights that one of them has come to, divided as the parameters are.
            workers: Their number.
        """
        changes = {name: torch.zeros_like(own_share(value)) for name, value in self.start.items()}
        for number in range(workers):
            for name, weight in weights_of(number).items():
                changes[name] += (own_share(self.start[name]) - own_share(weight)) / workers
        self._apply(changes)

    @torch.no_grad()
    def go_back(self) -> None:
        """Give the parameters the values that the round began with."""
        for name, parameter in self.parameters.items():
            own_share(parameter.detach()).copy_(own_share(self.start[name]))

    def _change(self, name: str) -> Tensor:
        """What this round has taken from a parameter: the outer gradient as this worker has it."""
        return own_share(self.start[name]) - own_share(self.parameters[name].detach())

    def _apply(self, gradients: Mapping[str, Tensor]) -> None:
        """The outer update, as `torch.optim.SGD` makes it with `nesterov`."""
        for name, gradient in gradients.items():
            start = own_share(self.start[name])
            if name not in self.momenta:
                start.sub_(gradient)
                continue
            momentum = own_share(self.momenta[name]).mul_(self.momentum).add_(gradient)
            start.sub_(gradient.add_(momentum, alpha=self.momentum), alpha=self.learning_rate)
        self.go_back()
