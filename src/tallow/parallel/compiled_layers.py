"""Layers in the form that `torch.compile` makes of them, applied to a model's layers from outside.

Each layer is compiled, not the model: layers of one kind share what is compiled for the first of them, so that it takes
as long for forty layers as for one. Attention, and what depends on the tokens (mixtures of experts), stay as they are,
between compiled parts: they have kernels of their own, and shapes that are others each time.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo

from tallow.errors import UsageError
from tallow.models.blocks.context import AttentionSpec, Context
from tallow.models.blocks.mixture import Mixture

Forward = Callable[..., Tensor]


class CompiledLayers:
    """Some layers, which can go over from their plain form to a compiled one, in place.

    A layer computes in its compiled form where a backward pass will follow, for inputs of as many places (and rows) as
    the first that it was given; all else it computes in its plain form, rather than compile again.

    Args:
        layers: Of a model.
        any_rows: Inputs have other numbers of rows from time to time, so that one compiled form is to take them all.
    """

    def __init__(self, layers: Sequence[nn.Module], *, any_rows: bool) -> None:
        copyreg.pickle(torch.memory_format, _by_name)
        self.any_rows = any_rows
        self._settings: AbstractContextManager[object] | None = None
        self._shape: torch.Size | None = None
        for layer in layers:
            mixtures: list[nn.Module] = [module for module in layer.modules() if isinstance(module, Mixture)]
            for mixture in mixtures:
                mixture.forward = partial(_as_it_is, mixture.forward)
            plain = layer.forward
            # shapes are either all fixed or all free, so that what is compiled does not depend on what came before
            layer.forward = partial(self._forward, plain, torch.compile(plain, dynamic=any_rows))

    @property
    def active(self) -> bool:
        """Whether they compute in their compiled form."""
        return self._settings is not None

    def begin(self) -> None:
        """Go over to the compiled form, which is made when a layer is called next."""
        # what is around the attention within its block and what is around that block become one part, not two
        settings = dynamo.patch(nested_graph_breaks=True)
        settings.__enter__()
        self._settings = settings

    def forget(self) -> None:
        """Go back to the plain form for good, and give back the memory of what was compiled."""
        if self._settings is not None:
            self._settings.__exit__(None, None, None)
            self._settings = None
            torch.compiler.reset()

    def _forward(self, plain: Forward, compiled: Forward, x_BTD: Tensor, *others: Any) -> Tensor:
        if not self.active or not torch.is_grad_enabled():
            return plain(x_BTD, *others)
        if self._shape is None:
            self._shape = x_BTD.shape
        first = 1 if self.any_rows else 0
        if x_BTD.shape[first:] != self._shape[first:]:
            return plain(x_BTD, *others)
        return compiled(x_BTD, *others[:-1], _Opaque(others[-1]))


def _by_name(value: torch.memory_format) -> tuple[Callable[[str], torch.memory_format], tuple[str]]:
    """How memory formats are written into the keys of PyTorch's cache.

    Without this it would be with the name of the first module that has a `torch` in it. So processes that have imported
    other modules first would not find what others have compiled.
    """
    return _memory_format, (str(value).removeprefix("torch."),)


def _memory_format(name: str) -> torch.memory_format:
    return getattr(torch, name)


class _Opaque:
    """A context that the compiler does not look into."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        return _attend(self.context, spec, q_BHTd, k_BKTd, v_BKTd)


@torch.compiler.disable()
def _attend(context: Context, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
    return context.attend(spec, q_BHTd, k_BKTd, v_BKTd)


@torch.compiler.disable()
def _as_it_is(forward: Forward, x_BTD: Tensor, context: Context | _Opaque) -> Tensor:
    return forward(x_BTD, context.context if isinstance(context, _Opaque) else context)


def require_compiler(device: torch.device) -> None:
    """See whether layers can be compiled for a device.

    Raises:
        UsageError: There is no compiler for it.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        raise UsageError("loop.compile needs Triton on a GPU, and it is not there", "pip install triton")
    try:
        get_cpp_compiler()  # Triton, too, compiles what starts its kernels
    except InvalidCxxCompiler as error:
        raise UsageError(
            "loop.compile needs a C++ compiler, and there is none here",
            "install one, such as g++, name one in the variable CXX, or set loop.compile to none",
        ) from error
