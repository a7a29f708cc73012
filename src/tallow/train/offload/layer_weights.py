"""The weights of layers elsewhere: while one computes, the next one's come, and those that have computed leave.

Source: arXiv 2104.07857, section 6.2 (prefetching in the order of use).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Source(Protocol):
    """Where the weights of layers are, and how they come to where the layers compute."""

    def adopt(self, layer: nn.Module) -> None:
        """Take a layer's weights, and let it compute with what comes of them."""
        ...

    def want(self, layer: nn.Module) -> None:
        """Let a layer's weights come; back at once. What has not come is waited for where it is used."""
        ...

    def drop(self, layer: nn.Module) -> None:
        """Let go of what has come of a layer's weights; the weights may change before they are wanted again."""
        ...


class LayerWeights:
    """Leaves the weights of layers with a source, from which few of them come at a time.

    Args:
        layers: In the order in which they compute.
        source: Takes their weights.

    Raises:
        UsageError: The weights are not where the source can take them.
        CapacityError: It has no room.
    """

    def __init__(self, layers: Sequence[nn.Module], source: Source) -> None:
        self._layers, self._source = layers, source
        for number, layer in enumerate(layers):
            source.adopt(layer)
            _listen(layer, number, self)

    def begin_forward(self, number: int) -> None:
        """A layer begins to compute; the one before it is done, and the next follows."""
        # as a pass begins weights may be others than in the pass before
        for done in self._layers if number == 0 else self._layers[number - 1 : number]:
            self._source.drop(done)
        for following in self._layers[number + 1 : number + 2]:
            self._source.want(following)

    def begin_backward(self, number: int) -> None:
        """Likewise in the backward pass, in which FSDP2 has by now gathered the layer that follows."""
        for done in self._layers[number + 1 : number + 2]:
            self._source.drop(done)
        following = number - (2 if isinstance(self._layers[number], FSDPModule) else 1)
        if following >= 0:
            self._source.want(self._layers[following])


def _listen(layer: nn.Module, number: int, weights: LayerWeights) -> None:
    """Tell when a layer begins to compute, in each direction."""

    def forward(_layer: nn.Module, _inputs: Any) -> None:
        weights.begin_forward(number)

    def backward(_gradient: Tensor) -> None:
        weights.begin_backward(number)

    def wait_for_gradient(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(backward)

    layer.register_forward_pre_hook(forward)
    layer.register_forward_hook(wait_for_gradient)
