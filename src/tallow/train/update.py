"""One update of the weights: gradients of all micro-batches of all processes, averaged, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tallow.data.batch import Packed
from tallow.errors import DataError, UsageError
from tallow.models.skeletons import Balancing
from tallow.objectives import Objective
from tallow.parallel import Layout
from tallow.train.config import LoopConfig
from tallow.train.loss_scale import LossScale
from tallow.train.offload.layer_weights import LayerWeights
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.offload.weights_on_disk import WeightsOnDisk
from tallow.train.offload.weights_on_host import WeightsOnHost
from tallow.train.optimizer import average_and_clip, make_optimizer
from tallow.train.precision import Precision, autocast, half_precision


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

    def metrics(self) -> dict[str, float]:
        """Loss and norm of the gradient, where they are finite."""
        found = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        return {name: value for name, value in found.items() if math.isfinite(value)}


LEFT_OUT = Update(loss=math.nan, gradient_norm=math.nan, tokens=0)
"""Of a step that was left out."""


class Updater:
    """What a layout's model learns, and the optimizer of those parameters that require a gradient (`parameters`).

    `moved` are those that change without one. A checkpoint keeps `scale`, too.

    Args:
        layout: The model.
        objective: What it learns.
        config: How.
        directory: Where files of what is offloaded lie, if `config` names no place.
    """

    def __init__(self, layout: Layout, objective: Objective, config: LoopConfig, directory: Path = Path()) -> None:
        self.layout, self.objective = layout, objective
        self.clip_norm = config.clip_norm
        self.parameters = layout.parameters
        offload = config.offload
        file = MappedFile(offload.directory or directory) if offload.to_disk else None
        if file is not None and offload.parameters == "disk":
            LayerWeights(layout.layers, WeightsOnDisk(file))
        if layout.layers_on_host and not layout.config.zero:
            LayerWeights(layout.layers, WeightsOnHost(layout.device))
        self.optimizer = make_optimizer(self.parameters, config, file, layout.shapes)
        self.balancing = layout.model if isinstance(layout.model, Balancing) else None
        self.moved = dict(self.balancing.moved_parameters()) if self.balancing is not None else {}
        self.device = layout.device
        self.scale = LossScale()
        self.updates_in_backward = config.optimizer.updates_in_backward
        if self.updates_in_backward and config.precision == "auto" and half_precision(self.device) == "fp16":
            raise UsageError(
                f"this GPU has no bf16, and {config.optimizer.name} keeps no gradients, which fp16 may want to compute "
                "once more",
                "set loop.precision to fp32",
            )
        if self.updates_in_backward and not layout.sums_at_once:
            raise UsageError(
                f"{config.optimizer.name} updates weights within the backward pass, but here gradients are complete "
                "only after it",
                "choose another optimizer, or set loop.parallel to zero: 3 alone",
            )
        layout.model.train()

    def update(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> Update:
        """Change the weights by one step, whatever the gradient is.

        Raises:
            DataError: There is no target token in the whole batch.
        """
        found = self.find(step, micro_batches, learning_rate, precision)
        self.apply(step, micro_batches, learning_rate, precision)
        return found

    def find(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> Update:
        """Compute the gradient of a step, averaged and clipped; `apply` or `discard` must follow.

        An optimizer that keeps no gradients has changed the weights by then.

        Raises:
            DataError: There is no target token in the whole batch.
        """
        if self.updates_in_backward:
            return self._update_in_backward(step, micro_batches, learning_rate, precision)
        loss, count, norm = self._gradients(micro_batches, precision)
        [tokens] = self.layout.mesh.data.sum(sum(packed.tokens_BT[:, 1:].numel() for packed in micro_batches))
        if count == 0:
            raise DataError(f"step {step:,} has no token to learn", "look at what the loss mask leaves of the data")
        scale = self.scale.factor if precision == "fp16" else 1.0
        norm /= count * scale
        average_and_clip(self.parameters.values(), count * scale, norm, self.clip_norm)
        return Update(loss / count, norm, int(tokens))

    def _update_in_backward(
        self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision
    ) -> Update:
        if len(micro_batches) > 1:
            raise UsageError(
                "an optimizer that updates weights within the backward pass takes the whole batch at once",
                "leave loop.micro_batch_size out, or choose a smaller loop.batch_size",
            )
        targets = sum(int(self.objective(packed).loss_mask_BT.sum()) for packed in micro_batches)
        count, tokens = self.layout.mesh.data.sum(
            targets, sum(packed.tokens_BT[:, 1:].numel() for packed in micro_batches)
        )
        if count == 0:
            raise DataError(f"step {step:,} has no token to learn", "look at what the loss mask leaves of the data")
        self.optimizer.set_learning_rate(learning_rate)
        with self.optimizer.updating(count) as squares:
            loss, _ = self._backpropagate(micro_batches, precision)
        [loss] = self.layout.sum(loss)
        [square] = self.layout.world.sum(sum(squares))
        return Update(loss / count, (square / self.layout.mesh.replicas) ** 0.5, int(tokens))

    def apply(self, step: int, micro_batches: Sequence[Packed], learning_rate: float, precision: Precision) -> None:
        """Change the weights by the gradient that was found."""
        if self.optimizer.wants_curvature(step):
            self._add_curvature(micro_batches, precision)
        if precision == "fp16":
            before, self.scale = self.scale.factor, self.scale.after_update()
            if self.layout.compressed is not None and self.scale.factor != before:
                self.layout.compressed.scale(self.scale.factor / before)
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.balancing is not None and self.moved:
            loads = self.balancing.take_loads()
            summed = self.layout.mesh.tokens.sum(*loads.flatten().tolist())
            self.balancing.move(torch.tensor(summed).view_as(loads))

    def discard(self) -> None:
        """Forget the gradient that was found."""
        if self.layout.compressed is not None:
            self.layout.compressed.forget()
        self._forget()

    def _forget(self) -> None:
        self.optimizer.zero_grad()
        if self.balancing is not None:
            self.balancing.take_loads()

    def _gradients(
        self, micro_batches: Sequence[Packed], precision: Precision, *, drawn_targets: bool = False
    ) -> tuple[float, float, float]:
        """Compute summed gradients; the summed loss, the number of targets, and the norm, times the loss's scale."""
        before = self.scale
        while True:
            loss, count = self.layout.sum(*self._backpropagate(micro_batches, precision, drawn_targets=drawn_targets))
            norm = self.layout.gradient_norm()
            if precision != "fp16" or math.isfinite(norm) or not math.isfinite(loss):
                return loss, count, norm
            if self.scale.factor == 1.0:
                self.scale = before  # what is bad whatever the scale says nothing of it
                return loss, count, norm
            # the gradients were too large for fp16, not bad: once more with smaller ones
            if drawn_targets:
                self.optimizer.zero_grad()
            else:
                self.discard()
            self.scale = self.scale.smaller()

    def _backpropagate(
        self,
        micro_batches: Sequence[Packed],
        precision: Precision,
        *,
        drawn_targets: bool = False,
        for_update: bool = True,
    ) -> tuple[float, int]:
        return self.layout.backpropagate(
            micro_batches,
            self.objective,
            lambda: autocast(precision, self.device),
            drawn_targets=drawn_targets,
            for_update=for_update and not drawn_targets,
            scale=self.scale.factor if precision == "fp16" else 1.0,
        )

    def _add_curvature(self, micro_batches: Sequence[Packed], precision: Precision) -> None:
        """Tell the optimizer the diagonal of the Gauss-Newton matrix, by Bartlett's identity.

        It is the square of the gradient towards tokens drawn from the model itself (arXiv 2305.14342, section 2.3).
        """
        gradients = [parameter.grad for parameter in self.parameters.values()]
        for parameter in self.parameters.values():
            parameter.grad = None
        _, count, norm = self._gradients(micro_batches, precision, drawn_targets=True)
        scale = self.scale.factor if precision == "fp16" else 1.0
        if math.isfinite(norm):  # else the optimizer would remember it for ever
            self.optimizer.add_curvature(lambda gradient: (gradient / scale).square() / max(1.0, count))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient

    @contextmanager
    def scoring(self, precision: Precision) -> Iterator[None]:
        """Within this block the model is as it is used, without chance and gradients, in this precision."""
        self.layout.model.eval()
        with torch.no_grad(), autocast(precision, self.device), self.optimizer.averaged():
            yield
        self.layout.forget_weights()
        self.layout.model.train()

    def rehearse(self, packed: Packed, precision: Precision) -> None:
        """Do what a micro-batch needs, and forget it."""
        self._backpropagate([packed], precision, for_update=False)
        self._forget()
