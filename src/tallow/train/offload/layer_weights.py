"""The weights of layers in a file: while one computes, the next is read, and those that have computed leave memory.

Source: arXiv 2104.07857, section 5.1.1 (parameters offloaded to NVMe) and 6.2 (prefetching in the order of use). The
file is mapped, so whoever uses a weight finds it there: what is said here to the system is advice.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tallow.errors import UsageError
from tallow.train.offload.mapped_file import MappedFile


class LayerWeights:
    """Moves the weights of layers into a file, and keeps few of them in memory while the layers compute.

    Args:
        layers: In the order in which they compute.
        file: Where their weights go.

    Raises:
        UsageError: The weights are divided, or not in the memory of the CPU.
        CapacityError: The disk is full.
    """

    def __init__(self, layers: Sequence[nn.Module], file: MappedFile) -> None:
        self.file = file
        self._weights = [list(layer.parameters()) for layer in layers]
        self._reader = ThreadPoolExecutor(1)
        for number, layer in enumerate(layers):
            for weight in self._weights[number]:
                _require_plain(weight)
                if file.holds(weight):  # shared with a layer before
                    continue
                weight.data = file.allocate(weight.nbytes).tensor(weight.data).copy_(weight.data)
            file.drop(self._weights[number])
            _listen(layer, number, self)

    def begin(self, layer: int, following: int) -> None:
        """A layer begins to compute, forward or backward; the one before it is done, and another follows."""
        if len(self._weights) > 1:
            self.file.drop(self._weights[(2 * layer - following) % len(self._weights)])
            if 0 <= following < len(self._weights):
                self._reader.submit(self.file.want, self._weights[following])


def _listen(layer: nn.Module, number: int, weights: LayerWeights) -> None:
    """Tell when a layer begins to compute, in each direction."""

    def forward(_layer: nn.Module, _inputs: Any) -> None:
        weights.begin(number, number + 1)

    def backward(_gradient: Tensor) -> None:
        weights.begin(number, number - 1)

    def wait_for_gradient(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(backward)

    layer.register_forward_pre_hook(forward)
    layer.register_forward_hook(wait_for_gradient)


def _require_plain(weight: Tensor) -> None:
    if isinstance(weight, DTensor):
        raise UsageError(
            "loop.offload.parameters disk is for weights that each process has whole, but here they are divided",
            "leave it out, or loop.parallel.zero, tensor and expert",
        )
    if weight.device.type != "cpu":
        raise UsageError(
            f"loop.offload.parameters disk is for weights in the memory of the CPU, but they are on {weight.device}",
            "leave it out",
        )
