"""Weights in the memory of the CPU, of which a GPU has copies for as long as their layer computes; gradients go to
where the weights are as soon as the backward pass has gone through the layer.

Source: arXiv 2104.07857, section 5.1.1 (parameters offloaded to the CPU), and 2101.06840, section 4.1 (gradients too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call


class WeightsOnHost:
    """Keeps weights in the memory of the CPU, and lets their layers compute with copies on a device.

    Between the forward and the backward pass autograd has no copy either, but what a layer makes of them, such as
    weights in half the bits, unless it recomputes.

    Args:
        device: Where layers compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        # two, since what comes must not wait for what leaves
        self._coming, self._leaving = (torch.cuda.Stream(device) if on_gpu else None for _ in range(2))
        self._weights: dict[nn.Module, list[nn.Parameter]] = {}
        self._copies: dict[nn.Parameter, _Copy] = {}
        self._in_storage: dict[int, nn.Parameter] = {}
        self._gradients: list[_Gradient] = []

    def adopt(self, layer: nn.Module) -> None:
        """Let a layer compute with copies of those of its weights that are in the memory of the CPU."""
        named = {name: weight for name, weight in layer.named_parameters() if weight.device.type == "cpu"}
        self._weights[layer] = list(named.values())
        for weight in named.values():
            if self._coming is not None and not weight.is_pinned():
                weight.data = weight.data.pin_memory()  # a GPU copies from such memory by itself
        layer.forward = partial(self._compute, _Call(layer), [f"layer.{name}" for name in named], list(named.values()))
        # around `forward`, so that recomputation within it has its own way
        remembering = saved_tensors_hooks(self._forget, self._remember)
        layer.register_forward_pre_hook(lambda _layer, _inputs: remembering.__enter__())
        layer.register_forward_hook(lambda _layer, _inputs, _output: remembering.__exit__(), always_call=True)

    def want(self, layer: nn.Module) -> None:
        """Copy a layer's weights to the device, beside what it computes."""
        self._copy([weight for weight in self._weights[layer] if weight not in self._copies])

    def drop(self, layer: nn.Module) -> None:
        """Free the copies of a layer's weights."""
        for weight in self._weights[layer]:
            if weight in self._copies:
                del self._in_storage[self._copies.pop(weight).storage]

    def copy_of(self, weight: nn.Parameter) -> Tensor:
        """What the device computes with in place of a weight."""
        if weight not in self._copies:
            self._copy([weight])
        copy = self._copies[weight]
        if copy.arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(copy.arrival)
        return copy.tensor

    @torch.no_grad()
    def take_gradients(self, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        """Let gradients go to their weights; when the backward pass ends they are there."""
        self._add_gradients()
        if self._leaving is not None:
            self._leaving.wait_stream(torch.cuda.current_stream(self.device))
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                with torch.cuda.stream(self._leaving):  # None: nothing to choose
                    here = torch.empty_like(weight, pin_memory=weight.is_pinned()).copy_(gradient, non_blocking=True)
                self._gradients.append(_Gradient(weight, here, gradient))
        Variable._execution_engine.queue_callback(self._add_gradients)

    def _add_gradients(self) -> None:
        """Wait for gradients that are under way, and add them."""
        if self._leaving is not None:
            self._leaving.synchronize()
        for found in self._gradients:
            weight = found.weight
            weight.grad = found.here if weight.grad is None else weight.grad.add_(found.here)
        self._gradients = []

    @torch.no_grad()
    def _copy(self, weights: Sequence[nn.Parameter]) -> None:
        # memory that the computing has freed may still be written to by it; so it is taken, and waited for, there
        copies = [
            torch.empty_strided(weight.size(), weight.stride(), dtype=weight.dtype, device=self.device)
            for weight in weights
        ]
        if self._coming is not None:
            self._coming.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._coming):
            for weight, copy in zip(weights, copies, strict=True):
                copy.copy_(weight, non_blocking=True)
        arrival = None if self._coming is None else self._coming.record_event()
        for weight, copy in zip(weights, copies, strict=True):
            self._copies[weight] = _Copy(copy, copy.untyped_storage()._cdata, arrival)
            self._in_storage[self._copies[weight].storage] = weight

    def _compute(self, call: _Call, names: Sequence[str], weights: Sequence[nn.Parameter], *inputs: Any) -> Tensor:
        copies = _Copied.apply(torch.zeros((), requires_grad=True), self, weights)
        return functional_call(call, dict(zip(names, copies, strict=True)), inputs)

    def _forget(self, tensor: Tensor) -> Tensor | _View:
        """What autograd keeps of a tensor that it saves."""
        weight = self._in_storage.get(tensor.untyped_storage()._cdata)
        if weight is None:
            return tensor
        return _View(weight, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _remember(self, kept: Tensor | _View) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return self.copy_of(kept.weight).as_strided(kept.size, kept.stride, kept.offset)


@dataclass(frozen=True)
class _Copy:
    """A copy of a weight.

    Args:
        storage: Names its memory.
        arrival: When it is there; None: it is.
    """

    tensor: Tensor
    storage: int
    arrival: torch.Event | None


@dataclass(frozen=True)
class _View:
    """Part of a copy of a weight, without the copy."""

    weight: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Gradient:
    """A gradient on its way.

    Args:
        here: Where it goes.
        there: Where it comes from; kept so long that nothing else is written there.
    """

    weight: nn.Parameter
    here: Tensor
    there: Tensor


class _Call(nn.Module):
    """What a layer computes, as a module that may be called with other weights while the layer itself is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.forward = layer, layer.forward


class _Copied(torch.autograd.Function):
    """Copies of weights; their gradients go back all at once, when the last of them is known.

    Autograd knows nothing of the weights: else it would say that their gradients are there when they have set out.
    Instead it is given a number that wants a gradient, too.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, _number: Tensor, host: WeightsOnHost, weights: Sequence[nn.Parameter]
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.host, ctx.weights = host, weights  # pyright: ignore[reportAttributeAccessIssue]
        copies = [host.copy_of(weight).detach() for weight in weights]
        frozen = [copy for copy, weight in zip(copies, weights, strict=True) if not weight.requires_grad]
        ctx.mark_non_differentiable(*frozen)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        ctx.host.take_gradients(ctx.weights, gradients)
        return None, None, None
