"""The optimizers that share the parameters of one model, as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tallow.train.offload.mapped_file import MappedFile
from tallow.train.offload.windows import StateWindows, windows_of
from tallow.train.optimizers.groups import RATE_FACTOR
from tallow.train.optimizers.lomo import OneByOne
from tallow.train.optimizers.method import Common, Method, Parameters
from tallow.train.state_tree import Structure, flatten, unflatten

GROUPS = "groups"


@runtime_checkable
class Averaging(Protocol):
    """An optimizer whose weights to use are not those that it trains."""

    def eval(self) -> None:
        """Put the weights to use in place of those that are trained."""
        ...

    def train(self) -> None:
        """Undo it, but for rounding."""
        ...


@runtime_checkable
class Curved(Protocol):
    """An optimizer that wants to know the diagonal of the loss's curvature."""

    curvature_every: int

    def add_curvature(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Take up an estimate, which gives that of a parameter from its gradient."""
        ...


class JointOptimizer:
    """What updates all parameters.

    Args:
        parameters: What is trained, by name.
        method: By which optimizers.
        common: Settings of all of them.
        file: What of parameters and their state is there leaves memory while others are updated.
        state_to_file: Whether the state goes there.

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
    ) -> None:
        self.parameters = parameters
        self.parts = method.make(parameters, common)
        self.state_classes = method.state_classes
        self.windows = None if file is None else StateWindows(file, self.state_classes(), with_state=state_to_file)
        for part in self.parts:
            self._run(part, lambda: None)  # some have a state from the beginning

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next update, of groups with a factor times that."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)

    def step(self) -> None:
        """Update the parameters by their gradients.

        Raises:
            CapacityError: The disk that the state goes to is full.
        """
        for part in self.parts:
            self._run(part, part.step)

    @contextmanager
    def updating(self, count: float) -> Iterator[list[float]]:
        """Within this block each parameter is updated as soon as its gradient is known, which is then forgotten.

        A parameter whose gradient is not finite stays as it is.

        Args:
            count: What gradients are divided by.

        Yields:
            The squared norms of the gradients so far (of this process's shares), divided by it.
        """
        squares: list[float] = []

        def update(part: OneByOne, group: dict[str, Any], parameter: Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            with torch.no_grad():
                gradient = gradient.div_(count)
                own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                squares.append(own.double().square().sum().item())
                norm = gradient.norm()
                if bool((norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()):
                    part.update_one(parameter, gradient, group)

        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(update, part, group))
            for part in self.parts
            if isinstance(part, OneByOne)
            for group in part.param_groups
            for parameter in group["params"]
        ]
        yield squares
        for hook in hooks:
            hook.remove()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()

    def wants_curvature(self, step: int) -> bool:
        """Whether update `step`, counted from 1, is to begin with an estimate of the curvature."""
        return any((step - 1) % part.curvature_every == 0 for part in self.parts if isinstance(part, Curved))

    def add_curvature(self, estimate: Callable[[Tensor], Tensor]) -> None:
        """Take up an estimate of the curvature's diagonal, which gives that of a parameter from its gradient."""
        for part in self.parts:
            if isinstance(part, Curved):
                self._run(part, partial(part.add_curvature, estimate))

    def use_averages(self) -> None:
        """Put the weights to use in place of those that are trained, where these are two; training is over."""
        for part in self.parts:
            if isinstance(part, Averaging):
                self._run(part, part.eval)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the weights are those to use."""
        averaging = [part for part in self.parts if isinstance(part, Averaging)]
        # they are kept, since the way back would round: when a model is validated must not change what it becomes
        trained = [parameter.detach().clone() for parameter in self.parameters.values()] if averaging else []
        self.use_averages()
        yield
        for part in averaging:
            self._run(part, part.train)
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), trained, strict=bool(averaging)):
                parameter.copy_(value)

    def take_weights(self) -> None:
        """Go on from the weights that the parameters have by now, which someone else has changed."""

    def state(self) -> tuple[dict[str, Tensor], Structure]:
        """All that it remembers; the tensors of a parameter are named `<parameter>/<slot>`."""
        state: dict[str, Any] = {
            name: dict(part.state[parameter])
            for part in self.parts
            for name, parameter in self.parameters.items()
            if parameter in part.state
        }
        # by the name of a parameter, for other processes may have other groups: of a pipeline's stages each has its own
        state[GROUPS] = {
            names[0]: {**group, "params": dict.fromkeys(names)}
            for part in self.parts
            for group in part.param_groups
            for names in [self._names(group["params"])]
        }
        return flatten(state, self.state_classes())

    def passing(self) -> AbstractContextManager[None]:
        """Within this block all of the state is read once, and what of it is in a file does not stay in memory."""
        return nullcontext() if self.windows is None else self.windows.file.passing()

    def load_state(self, read: Callable[[Collection[str]], Mapping[str, Tensor]], structure: Structure) -> None:
        """Go on from what was remembered.

        Args:
            read: Gives the tensors of some parameters, by `<parameter>/<slot>`. Where the state is in a file, a few
                parameters are asked for at a time.
            structure: What of the state is no tensor.

        Raises:
            CapacityError: The disk that the state goes to is full.
        """
        classes = self.state_classes()
        saved_groups = unflatten(read([GROUPS]), structure.of([GROUPS]), classes)[GROUPS]
        group_of = {name: saved for saved in saved_groups.values() for name in saved.pop("params")}
        for group in (group for part in self.parts for group in part.param_groups):
            group.update(group_of[self._names(group["params"])[0]])
        for part in self.parts:
            of_part = [parameter for group in part.param_groups for parameter in group["params"]]
            for parameters in [of_part] if self.windows is None else windows_of(of_part):
                chosen = self._names(parameters)
                state = unflatten(read(chosen), structure.of(chosen), classes)
                for name, parameter in zip(chosen, parameters, strict=True):
                    if name in state:
                        part.state[parameter] = state[name]
                if self.windows is not None:
                    self.windows.settle(part, parameters)

    def _names(self, parameters: Sequence[Tensor]) -> list[str]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        return [names[parameter] for parameter in parameters]

    def _run(self, part: Optimizer, act: Callable[[], object]) -> None:
        """Let a part do something to its parameters."""
        if self.windows is None:
            act()
        else:
            self.windows.run(part, act)
