"""Updates on the CPU of weights that another device computes with: state and a copy of the weights stay in its memory.

Source: ZeRO-Offload, arXiv 2101.06840, section 4 (gradients go to the CPU, weights come back; 12 of 16 bytes a weight
leave the device).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tallow.parallel.shares import own_share, with_share
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.optimizers.joint import JointOptimizer
from tallow.train.optimizers.method import Common, Method, Parameters
from tallow.train.state_tree import Structure


class HostOptimizer(JointOptimizer):
    """What updates parameters of a device on the CPU; its own `parameters` are copies there.

    Args:
        parameters: What is trained, by name, on any device. Shares of those that are divided are copied.
        method: By which optimizers.
        common: Settings of all of them.
        file: As `JointOptimizer` has it.
        state_to_file: Likewise.
        at_home: Which parameters are in the memory of the CPU already: they are updated there, without a copy.

    Raises:
        CapacityError: The disk is full.
    """

    def __init__(
        self,
        parameters: Parameters,
        method: Method,
        common: Common,
        file: MappedFile | None = None,
        *,
        state_to_file: bool = False,
        at_home: Collection[str] = (),
    ) -> None:
        twins = {
            name: parameter if name in at_home else _copy_on_host(parameter) for name, parameter in parameters.items()
        }
        self._pairs = {name: (parameters[name], twin) for name, twin in twins.items() if name not in at_home}
        super().__init__(twins, method, common, file, state_to_file=state_to_file)
        devices = {own.device for own in map(own_share, parameters.values()) if own.is_cuda}
        self._streams = {device: torch.cuda.Stream(device) for device in devices}

    def step(self) -> None:
        """Update the parameters by their gradients."""
        self._take_gradients()
        super().step()
        self._give_weights()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        super().zero_grad()
        for parameter, _ in self._pairs.values():
            parameter.grad = None

    def add_curvature(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Take up an estimate of the curvature's diagonal, which gives that of a parameter from its gradient."""
        self._take_gradients()
        super().add_curvature(estimate)

    def use_averages(self) -> None:
        """Put the weights to use in place of those that are trained, where these are two; training is over."""
        super().use_averages()
        self._give_weights()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the weights are those to use."""
        with super().averaged():
            yield
        self._give_weights()

    def load_state(self, read: Callable[[Collection[str]], Mapping[str, Tensor]], structure: Structure) -> None:
        """Go on from what was remembered, with the weights that the device has by now."""
        super().load_state(read, structure)
        self.take_weights()

    def take_weights(self) -> None:
        """Go on from the weights that the parameters have by now, which someone else has changed."""
        self._copy([(twin, parameter) for parameter, twin in self._pairs.values()])

    def _take_gradients(self) -> None:
        copies: list[tuple[Tensor, Tensor]] = []
        for parameter, twin in self._pairs.values():
            if parameter.grad is None:
                twin.grad = None
                continue
            if twin.grad is None:
                twin.grad = with_share(parameter.grad, _room(own_share(parameter.grad)))
            copies.append((twin.grad, parameter.grad))
        self._copy(copies)

    def _give_weights(self) -> None:
        self._copy([(parameter, twin) for parameter, twin in self._pairs.values()])

    @torch.no_grad()
    def _copy(self, pairs: Collection[tuple[Tensor, Tensor]]) -> None:
        """Copy this process's shares, each second one into the first, all of them at once where the devices can."""
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))
        for to, source in pairs:
            own, other = own_share(to), own_share(source)
            stream = self._streams.get(own.device if own.is_cuda else other.device)
            with torch.cuda.stream(stream):  # None: nothing to choose
                own.copy_(other, non_blocking=True)
        for stream in self._streams.values():
            stream.synchronize()


def _copy_on_host(parameter: nn.Parameter) -> nn.Parameter:
    own = own_share(parameter.detach())
    return nn.Parameter(with_share(parameter.detach(), _room(own).copy_(own)))


def _room(like: Tensor) -> Tensor:
    """Memory of the CPU for a tensor, from which a GPU can copy by itself."""
    return torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
