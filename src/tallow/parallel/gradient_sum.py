"""Sums of gradients over processes that each hold all weights, while the backward pass still goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tallow.parallel.shares import own_gradient
from tallow.parallel.world import World, buckets


class GradientSum:
    """Sums the gradients of some parameters over the processes of a world.

    Parameters are taken in buckets, those whose gradients come first (the last ones) first. A bucket is sent as soon as
    it and all before it are complete, so that all processes send the same ones in the same order (arXiv 2006.15704,
    section 3.2).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World) -> None:
        self.world = world
        self.buckets = list(buckets(parameters[::-1]))
        self._bucket_of = {parameter: number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, dist.Work]] = []
        self._listening = False
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)

    @contextmanager
    def in_last_backward(self) -> Iterator[None]:
        """Around the last backward pass before an update; afterwards the gradients are sums."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._sent, self._listening = [], True
        try:
            yield
        finally:
            self._listening = False
        self.complete()

    def begin(self) -> None:
        """Send gradients, which all have been computed; `complete` must follow."""
        while len(self._sent) < len(self.buckets):
            self._send()

    def complete(self) -> None:
        """Make gradients that have been computed sums."""
        self.begin()  # parameters that the loss of this process did not depend on, too
        sent, self._sent = self._sent, []
        self.receive(sent)

    def message(self, number: int) -> Tensor:
        """What this process has to say of a bucket; all processes are told the sum."""
        return torch.cat([own_gradient(parameter).flatten() for parameter in self.buckets[number]])

    def receive(self, sums: Sequence[tuple[Tensor, dist.Work]]) -> None:
        """Make gradients of the sums of all messages, by bucket, once they have come."""
        for bucket, (flat, work) in zip(self.buckets, sums, strict=True):
            work.wait()
            gradients = [own_gradient(parameter) for parameter in bucket]
            for gradient, values in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(values.view_as(gradient))

    def _ready(self, parameter: Tensor) -> None:
        if not self._listening:
            return
        assert isinstance(parameter, nn.Parameter)
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self.buckets) and self._missing[len(self._sent)] == 0:
            self._send()

    def _send(self) -> None:
        """Send the next bucket."""
        self._sent.append(self.send(self.message(len(self._sent))))

    def send(self, message: Tensor) -> tuple[Tensor, dist.Work]:
        """Begin to sum a message over all processes, in place."""
        work = dist.all_reduce(message, group=self.world.group, async_op=True)
        assert work is not None
        return message, work
