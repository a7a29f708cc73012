"""One update of the weights: gradients of all micro-batches of all processes, averaged, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import DataError, TallowError
from tallow.objectives import Objective, TokenModel
from tallow.objectives.loss import backpropagate
from tallow.parallel import World
from tallow.train.config import LoopConfig
from tallow.train.optimizer import average_and_clip, make_optimizer
from tallow.train.precision import Precision, autocast


class TrainableModel(TokenModel, Protocol):
    """A module that predicts tokens."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def train(self, mode: bool = True) -> Self: ...


@runtime_checkable
class Balancing(Protocol):
    """A model that evens the use of its experts after each update, without a gradient."""

    def moved_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What it moves, by name."""
        ...

    def take_loads(self) -> Tensor:
        """Tokens that each expert of each layer has computed in training since this was last asked."""
        ...

    def move(self, loads: Tensor) -> None:
        """Move them, by the loads of all batches of an update on all processes."""
        ...


@dataclass(frozen=True)
class Update:
    """What an update found.

    Args:
        loss: Mean over the target tokens, in nats, with the weights as they were before it.
        gradient_norm: Of that loss, before clipping.
        tokens: Tokens that went through the model, on all processes.
    """

    loss: float
    gradient_norm: float
    tokens: int


class Updater:
    """A model, what it learns, and the optimizer of those parameters that require a gradient (`parameters`).

    `moved` are those that change without one.
    """

    def __init__(self, model: TrainableModel, objective: Objective, config: LoopConfig, world: World) -> None:
        self.model, self.objective, self.world = model.train(), objective, world
        self.clip_norm = config.clip_norm
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.optimizer = make_optimizer(self.parameters, config)
        self.balancing = model if isinstance(model, Balancing) else None
        self.moved = dict(self.balancing.moved_parameters()) if self.balancing is not None else {}
        self.device = next(iter(self.parameters.values())).device

    def update(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> Update:
        """Change the weights by one step.

        Raises:
            DataError: There is no target token in the whole batch.
            TallowError: Loss or gradient is not finite; the weights are as they were.
        """
        if self.optimizer.wants_curvature(step):
            self._add_curvature(micro_batches, precision)
        loss, targets = 0.0, 0
        for packed in micro_batches:
            micro_loss, micro_targets = self.add_gradient(packed, precision)
            loss, targets = loss + micro_loss, targets + micro_targets
        local_tokens = sum(packed.tokens_BT[:, 1:].numel() for packed in micro_batches)
        loss, count, tokens = self.world.sum(loss, targets, local_tokens)
        if count == 0:
            raise DataError(f"step {step:,} has no token to learn", "look at what the loss mask leaves of the data")
        self.world.sum_gradients(self.parameters.values())
        norm = average_and_clip(self.parameters.values(), count, self.clip_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TallowError(
                f"training diverged at step {step:,}: the loss is {loss / count:.4g}, its gradient's norm {norm:.4g}",
                "lower loop.learning_rate or lengthen loop.warmup",
            )
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.balancing is not None and self.moved:
            loads = self.balancing.take_loads()
            self.balancing.move(torch.tensor(self.world.sum(*loads.flatten().tolist())).view_as(loads))
        return Update(loss / count, norm, int(tokens))

    def add_gradient(self, packed: Packed, precision: Precision) -> tuple[float, int]:
        """Add the gradient of a micro-batch; the sum of its losses and the number of its targets."""
        example = self.objective(packed)
        with autocast(precision, self.device):
            loss = backpropagate(self.model, example)
        return loss.item(), int(example.loss_mask_BT.sum())

    def _add_curvature(self, micro_batches: Sequence[Packed], precision: Precision) -> None:
        """Tell the optimizer the diagonal of the Gauss-Newton matrix, by Bartlett's identity.

        It is the square of the gradient towards tokens drawn from the model itself (arXiv 2305.14342, section 2.3).
        """
        targets = 0
        for packed in micro_batches:
            example = self.objective(packed)
            targets += int(example.loss_mask_BT.sum())
            with autocast(precision, self.device):
                backpropagate(self.model, example, drawn_targets=True)
        [count] = self.world.sum(targets)
        self.world.sum_gradients(self.parameters.values())
        self.optimizer.add_curvature(lambda gradient: gradient.square() / max(1.0, count))
        self.optimizer.zero_grad()

    @contextmanager
    def scoring(self, precision: Precision) -> Iterator[None]:
        """Within this block the model is as it is used, without chance and gradients, in this precision."""
        self.model.train(False)
        with torch.no_grad(), autocast(precision, self.device), self.optimizer.averaged():
            yield
        self.model.train()

    def rehearse(self, packed: Packed, precision: Precision) -> None:
        """Do what a micro-batch needs, and forget it."""
        self.add_gradient(packed, precision)
        self.optimizer.zero_grad()
        if self.balancing is not None:
            self.balancing.take_loads()
