"""Weights in a file: those of a few layers are in memory, and a thread reads the next ones.

Source: arXiv 2104.07857, section 5.1.1 (parameters offloaded to NVMe). The file is mapped, so whoever uses a weight
finds it there: what is said here to the system is advice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from torch import Tensor, nn

from tallow.errors import UsageError
from tallow.parallel.shares import own_share, put_share
from tallow.train.offload.mapped_file import MappedFile


class WeightsOnDisk:
    """Keeps weights in a file; of those that are divided, this process's shares.

    What FSDP2 divides must come here before it first computes: it then looks where its shares are.

    Args:
        file: Where they go.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self._weights: dict[nn.Module, list[nn.Parameter]] = {}
        self._reader = ThreadPoolExecutor(1)

    def adopt(self, layer: nn.Module) -> None:
        """Move a layer's weights into the file.

        Raises:
            UsageError: They are not in the memory of the CPU.
            CapacityError: The disk is full.
        """
        # while FSDP2 lets a layer compute, its parameters are others
        self._weights[layer] = list(layer.parameters())
        for weight in self._weights[layer]:
            own = own_share(weight.detach())
            if own.device.type != "cpu":
                raise UsageError(
                    f"loop.offload.parameters disk is for weights that are on the CPU, but these are on {own.device}",
                    "set it to cpu, or leave it out",
                )
            if own.numel() and not self.file.holds(own):  # it does if they are shared with a layer before
                put_share(weight, self.file.allocate(own.nbytes).tensor(own).copy_(own))
        self.drop(layer)

    def want(self, layer: nn.Module) -> None:
        """Read a layer's weights, in a thread."""
        self._reader.submit(self.file.want, self._kept(layer))

    def drop(self, layer: nn.Module) -> None:
        """Let a layer's weights leave memory."""
        self.file.drop(self._kept(layer))

    def _kept(self, layer: nn.Module) -> list[Tensor]:
        """What of a layer's weights is in the file; FSDP2 moves out what it must fill up to equal shares."""
        shares = (own_share(weight.detach()) for weight in self._weights[layer])
        return [own for own in shares if self.file.holds(own)]
