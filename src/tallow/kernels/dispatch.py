"""One operation = one reference in plain torch that defines it, and fast versions that may stand in for it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Concatenate, Generic, Literal, ParamSpec, TypeVar

from tallow.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Versions = Literal["fast", "reference"]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_versions: ContextVar[Versions | None] = ContextVar("tallow_kernels", default=None)


@contextmanager
def using(versions: Versions) -> Iterator[None]:
    """Within this block operations run their fast versions where they apply, or only their references.

    Outside such a block the environment variable TALLOW_KERNELS decides (`fast` if it is not set).
    """
    token = _versions.set(versions)
    try:
        yield
    finally:
        _versions.reset(token)


def prefers_fast() -> bool:
    """Whether fast versions are to run where they apply."""
    return (_versions.get() or _default_versions()) == "fast"


class Operation(Generic[Parameters, Result]):
    """A function of a tensor and more; the first tensor's device and dtype choose the version that runs.

    A fast version returns None for a call that does not suit it (an odd shape, say); then the reference runs. In what
    `torch.compile` compiles it is the reference always: the compiler looks into it, and joins it with what is around.
    """

    def __init__(self, reference: Callable[Concatenate[Tensor, Parameters], Result]) -> None:
        functools.update_wrapper(self, reference)
        self.reference = reference
        self._fast: dict[tuple[str, torch.dtype], Callable[Concatenate[Tensor, Parameters], Result | None]] = {}

    def __call__(self, x: Tensor, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        device = "cpu" if x.is_cpu else x.device.type  # the short way for the device where a microsecond counts
        fast = self._fast.get((device, x.dtype))
        if fast is not None and not _is_compiling() and prefers_fast():
            result = fast(x, *args, **kwargs)
            if result is not None:
                return result
        return self.reference(x, *args, **kwargs)

    def fast(
        self, device: str, *dtypes: torch.dtype
    ) -> Callable[
        [Callable[Concatenate[Tensor, Parameters], Result | None]],
        Callable[Concatenate[Tensor, Parameters], Result | None],
    ]:
        """Register the decorated function as the fast version for a device type and some dtypes."""

        def register(
            version: Callable[Concatenate[Tensor, Parameters], Result | None],
        ) -> Callable[Concatenate[Tensor, Parameters], Result | None]:
            for dtype in dtypes:
                self._fast[device, dtype] = version
            return version

        return register


def _is_compiling() -> bool:
    import torch  # there by now, whoever calls an operation

    return torch.compiler.is_compiling()


@functools.cache
def _default_versions() -> Versions:
    match os.environ.get("TALLOW_KERNELS", "fast"):
        case "fast":
            return "fast"
        case "reference":
            return "reference"
        case other:
            raise UsageError(f"TALLOW_KERNELS={other} is unknown", "set it to fast or reference")
