"""The largest activations of a model, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ActivationPeak:
    """The largest absolute value of the hidden states between layers, over all that went through; None: none did."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    @property
    def value(self) -> float | None:
        return None if self._largest is None else self._largest.item()

    def see(self, _module: nn.Module, _inputs: object, output: object) -> None:
        """Look at what a layer gives: the hidden states, or a tuple that begins with them."""
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor):
            largest = hidden.detach().abs().amax().float()
            self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)


@contextmanager
def activation_peak(model: object) -> Iterator[ActivationPeak]:
    """Within this block all that a model's `layers` give is looked at, if it has such."""
    layers = getattr(model, "layers", None)
    peak = ActivationPeak()
    hooks = [layer.register_forward_hook(peak.see) for layer in layers] if isinstance(layers, nn.ModuleList) else []
    try:
        yield peak
    finally:
        for hook in hooks:
            hook.remove()
