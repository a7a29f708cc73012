"""Sums of gradients over slow links: matrices travel as products of two thin ones (PowerSGD, arXiv 1905.13727)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from tallow.parallel.gradient_sum import GradientSum
from tallow.parallel.shares import like_share, own_gradient, own_share, with_share
from tallow.parallel.world import World

EXACT_ROUNDS = 2
"""Exchanges at the start that are not compressed: the first gradients of a model are its largest."""
LEAST_SAVING = 2.0
"""Matrices of which the thin ones would not be smaller by this factor travel as they are."""
ROUNDS, ERROR, DIRECTION = "rounds", "/error", "/direction"


class CompressedSum(GradientSum):
    """Sums the gradients of some parameters over the processes of a world, approximately.

    Of a gradient M (N K) the others are told P = M Q (N R), where Q (K R) is what the last exchange ended with, and
    once the columns of the sum of all P are made orthogonal, Mᵀ P (K R); the product of the two sums is the result. So
    there are two messages a bucket. The first is sent as soon as its gradients are complete, while the backward pass
    still goes on; the second, which is made of the answer to the first, after it.

    What an exchange leaves out each process adds to its next gradient (error feedback, algorithm 2 of the paper). What
    all have left out together is all that matters to the sums that follow, so a checkpoint keeps no more.

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

    def scale(self, factor: float) -> None:
        """What was left out is to be added to gradients that are so many times as large."""
        for error_NK in self._errors.values():
            error_NK *= factor

    def state(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """What is to be known to go on: exchanges so far, and by name what all have left out together, and Q.

        All processes must call it, and then go on with equal parts of what was left out, as those will that load it.
        """
        kept = {ROUNDS: torch.tensor(self._rounds)}
        for name, parameter in parameters.items():
            if parameter in self._errors:
                total_NK = self._errors[parameter].clone()
                dist.all_reduce(total_NK, group=self.world.group)
                self._errors[parameter] = total_NK / self.world.size
                kept[name + ERROR] = with_share(parameter, total_NK.view_as(own_share(parameter)))
            if parameter in self._q_KR:
                kept[name + DIRECTION] = _direction_of(parameter, self._q_KR[parameter])
        return kept

    def place(
        self, parameters: Mapping[str, nn.Parameter], key: str, shape: torch.Size, dtype: torch.dtype
    ) -> Tensor | None:
        """Where something that `state` has named is to be read to; None: it does not fit, and is to be made anew."""
        if key == ROUNDS:
            return torch.empty(shape, dtype=dtype)
        name, _, slot = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in self._thin:
            return None
        if slot == ERROR[1:]:
            return like_share(parameter, shape, dtype) if shape == parameter.shape else None
        columns, device = own_share(parameter.detach()).flatten(1).shape[1], parameter.device
        place = _direction_of(parameter, torch.empty(columns, self.rank, dtype=dtype, device=device))
        return place if place.shape == shape else None  # shares of the rows of others have other directions

    def load_state(self, parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor]) -> None:
        """Go on from what `state` has given, with whatever number of processes; from nothing, if there is nothing."""
        self.forget()
        self._rounds = int(kept[ROUNDS]) if ROUNDS in kept else 0
        for name, parameter in parameters.items():
            if (total := kept.get(name + ERROR)) is not None:
                self._errors[parameter] = own_share(total).flatten(1) / self.world.size
            if (direction := kept.get(name + DIRECTION)) is not None:
                self._q_KR[parameter] = own_share(direction)

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


def _direction_of(parameter: nn.Parameter, q_KR: Tensor) -> Tensor:
    """Q of this process's share of a parameter, as its share of all of them, one above the other."""
    if not isinstance(parameter, DTensor):
        return q_KR
    places = [Replicate() if place.is_replicate() else Shard(0) for place in parameter.placements]
    return DTensor.from_local(q_KR, parameter.device_mesh, places, run_check=False)
