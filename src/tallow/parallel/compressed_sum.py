"""Sums of gradients over slow links: matrices travel as products of two thin ones (PowerSGD, arXiv 1905.13727)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tallow.parallel.gradient_sum import GradientSum
from tallow.parallel.shares import own_gradient, own_share
from tallow.parallel.world import World

EXACT_ROUNDS = 2
"""Exchanges at the start that are not compressed: the first gradients of a model are its largest."""
LEAST_SAVING = 2.0
"""Matrices of which the thin ones would not be smaller by this factor travel as they are."""


class CompressedSum(GradientSum):
    """Sums the gradients of some parameters over the processes of a world, approximately.

    Of a gradient M (N K) the others are told P = M Q (N R), where Q (K R) is what the last exchange ended with, and
    once the columns of the sum of all P are made orthogonal, Mᵀ P (K R); the product of the two sums is the result. So
    there are two messages a bucket. The first is sent as soon as its gradients are complete, while the backward pass
    still goes on; the second, which is made of the answer to the first, after it.

    What an exchange leaves out each process adds to its next gradient (error feedback, algorithm 2 of the paper). This
    is held in memory alone: a run that goes on from a checkpoint has lost what its last exchange left out.

    Args:
        parameters: Each whole on each process.
        world: The processes.
        rank: Inner size of the two matrices, R.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, rank: int) -> None:
        super().__init__(parameters, world)
        self.rank = rank
        self._thin = {parameter for parameter in parameters if self._is_worth_it(own_share(parameter.detach()).shape)}
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing left out."""
        self._rounds = self._numbers = self._sent_numbers = 0
        self._errors: dict[nn.Parameter, Tensor] = {}
        self._q_KR: dict[nn.Parameter, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)  # alike on all processes

    @property
    def saving(self) -> float:
        """Numbers of all gradients so far that were compressed over those that were sent in their place."""
        return self._numbers / max(1, self._sent_numbers)

    def message(self, number: int) -> Tensor:
        if self._rounds < EXACT_ROUNDS:
            return super().message(number)
        parts: list[Tensor] = []
        for parameter in self.buckets[number]:
            gradient = own_gradient(parameter)
            if parameter in self._thin:
                if parameter in self._errors:
                    gradient += self._errors[parameter].view_as(gradient)
                matrix_NK = gradient.flatten(1)
                parts.append(matrix_NK @ self._direction(parameter, matrix_NK))
            else:
                parts.append(gradient)
            self._numbers += gradient.numel()
        message = torch.cat([part.flatten() for part in parts])
        self._sent_numbers += message.numel()
        return message

    def receive(self, sums: Sequence[tuple[Tensor, dist.Work]]) -> None:
        self._rounds += 1
        if self._rounds <= EXACT_ROUNDS:
            super().receive(sums)
            return
        p_NR: dict[nn.Parameter, Tensor] = {}
        answers: list[tuple[list[nn.Parameter], Tensor, dist.Work]] = []
        for bucket, (flat, work) in zip(self.buckets, sums, strict=True):
            work.wait()
            own = [parameter for parameter in bucket if parameter in self._thin]
            sizes = [self.rank * len(own_gradient(p)) if p in self._thin else own_gradient(p).numel() for p in bucket]
            for parameter, values in zip(bucket, flat.split(sizes), strict=True):
                gradient = own_gradient(parameter)
                if parameter in self._thin:
                    p_NR[parameter] = torch.linalg.qr(values.view(-1, self.rank)).Q
                else:
                    gradient.copy_(values.view_as(gradient))
            if own:
                parts = [own_gradient(parameter).flatten(1).T @ p_NR[parameter] for parameter in own]
                message, answer = self.send(torch.cat([part.flatten() for part in parts]))
                self._sent_numbers += message.numel()
                answers.append((own, message, answer))
        for own, flat, answer in answers:
            answer.wait()
            sizes = [self._q_KR[parameter].numel() for parameter in own]
            for parameter, values in zip(own, flat.split(sizes), strict=True):
                q_KR = values.view(-1, self.rank)
                gradient, sum_NK = own_gradient(parameter), p_NR[parameter] @ q_KR.T
                self._errors[parameter] = gradient.flatten(1) - sum_NK / self.world.size
                self._q_KR[parameter] = q_KR.clone()
                gradient.copy_(sum_NK.view_as(gradient))

    def _direction(self, parameter: nn.Parameter, matrix_NK: Tensor) -> Tensor:
        """Q of a parameter; at first by chance."""
        if parameter not in self._q_KR:
            q_KR = torch.randn(matrix_NK.shape[1], self.rank, generator=self._generator)
            self._q_KR[parameter] = q_KR.to(matrix_NK.device)
        return self._q_KR[parameter]

    def _is_worth_it(self, shape: torch.Size) -> bool:
        if len(shape) < 2:
            return False
        return (shape[0] + shape[1:].numel()) * self.rank * LEAST_SAVING < shape.numel()
