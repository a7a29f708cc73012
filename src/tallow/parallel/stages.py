"""A model cut into stages that follow one another: what a pipeline consists of.

Which stage needs what is found by watching: what is read before the layers belongs to the first stage, all else but the
layers to the last. What both read, such as an embedding that is the output matrix too, both have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tallow.errors import UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.skeletons import Layered
from tallow.objectives import Example
from tallow.objectives.loss import WHOLE, Vocabulary, loss_of_hidden


@dataclass(frozen=True)
class Share:
    """What one stage has of a model.

    Args:
        layers: Which of its layers.
        children: Names of its other children.
    """

    layers: range
    children: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether a parameter or buffer of this name belongs to the stage."""
        child, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) in self.layers if child == "layers" else child in self.children


def divide(model: Layered, count: int) -> list[Share]:
    """Shares of `count` stages; the last ones, of which one computes logits, have fewer layers where not all are equal.

    Raises:
        UsageError: There are more stages than layers.
    """
    assert isinstance(model, nn.Module)
    number = len(model.layers)
    if number < count:
        raise UsageError(
            f"{number} layers cannot be divided into {count} stages",
            "lower loop.parallel.pipeline, or choose a schedule with one stage a process: gpipe or 1f1b",
        )
    x_BTD, before = _reads(lambda: _first_input(model))
    _, behind = _reads(lambda: model.logits(model.finish(x_BTD)))
    first, last = set[str](), set[str]()
    for name, child in model.named_children():
        if child is model.layers:
            continue
        own = set(child.parameters())
        if own & before:
            first.add(name)
        if own & behind or not own & before:
            last.add(name)
    shares: list[Share] = []
    for stage in range(count):
        start = shares[-1].layers.stop if shares else 0
        layers = range(start, start + number // count + (stage < number % count))
        children = (first if stage == 0 else set[str]()) | (last if stage == count - 1 else set[str]())
        shares.append(Share(layers, frozenset(children)))
    return shares


def keep(model: Layered, shares: Sequence[Share]) -> None:
    """Leave all parameters of other stages out of a model, in place; what stays keeps its name."""
    assert isinstance(model, nn.Module)
    for name, child in list(model.named_children()):
        if child is not model.layers and not any(name in share.children for share in shares):
            setattr(model, name, nn.Identity())
    for index in range(len(model.layers)):
        if not any(index in share.layers for share in shares):
            model.layers[index] = nn.Identity()


class Work(Protocol):
    """What stages work on.

    Args:
        drawn_targets: Whether the loss is towards targets that the model itself draws.
        own_s: Seconds of the forward passes; stages add theirs.
    """

    drawn_targets: bool
    own_s: float

    def example(self, number: int) -> Example:
        """A micro-batch."""
        ...


class Stage(nn.Module):
    """What a stage computes: all of its parameters are used within one `forward`.

    Args:
        model: Of which it has a share.
    """

    def __init__(self, model: Layered, share: Share, work: Work) -> None:
        super().__init__()
        assert isinstance(model, nn.Module)
        self.share, self.work = share, work
        self.vocabulary: Vocabulary = WHOLE
        self.begin_sums: Sequence[Callable[[], None]] = ()
        """What is called as soon as the gradients of this process's part of a batch are complete."""
        self.is_first, self.is_last = share.layers.start == 0, share.layers.stop == len(model.layers)
        self.layers: nn.ModuleList = nn.ModuleList(model.layers[index] for index in share.layers)
        self.others = nn.ModuleList(child for name, child in model.named_children() if name in share.children)
        # a function, so that what belongs to other stages on this process is no part of this module
        self.whole = lambda: model

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """What the next stage is given, B T D; of the last stage the loss of all targets together (float64).

        Args:
            x: What the stage before gave, B T D; the first one does not look at it.
            number: The micro-batch's number, one element.
        """
        start = time.perf_counter()
        example, model = self.work.example(int(number)), self.whole()
        x_BTD = model.begin(example.inputs_BT, example.context) if self.is_first else x
        result = x_BTD = model.through(x_BTD, example.context, self.share.layers)
        if self.is_last:
            hidden_BTD = model.finish(x_BTD)
            result = loss_of_hidden(
                model.logits, hidden_BTD, example, drawn_targets=self.work.drawn_targets, vocabulary=self.vocabulary
            )
        self.work.own_s += time.perf_counter() - start
        return result.clone() if result._is_view() else result  # zero bubble detaches it in place


def activation(model: Layered) -> Tensor:
    """What stages of a whole model hand on for one row of one token, 1 1 D; its values mean nothing."""
    with torch.no_grad():
        return _first_input(model)


def _first_input(model: Layered) -> Tensor:
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    inputs_BT = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return model.begin(inputs_BT, SequenceContext.plain(1, 1, device))


def _reads(work: Callable[[], Tensor]) -> tuple[Tensor, set[nn.Parameter]]:
    """What a computation gives, and the parameters that it reads."""
    with torch.no_grad(), _Watch() as watch:
        result = work()
    return result, watch.read


class _Watch(TorchFunctionMode):
    """Notes which parameters operations are given."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[nn.Parameter] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        self.read |= {value for value in tree_leaves((args, named)) if isinstance(value, nn.Parameter)}
        return func(*args, **named)
