"""The C++ kernels: whether they are there, and which of them this processor runs."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any

from tallow.console import say
from tallow.errors import UsageError


@functools.cache
def native() -> ModuleType | None:
    """The C++ extension; None where it could not be built, which the first call says on standard error."""
    try:
        return importlib.import_module("tallow.kernels.cpu._native")
    except ImportError as error:
        say(f"tallow runs without its C++ kernels, so more slowly ({error}); install a C++ compiler, then tallow anew")
        return None


@functools.cache
def operation_set() -> str:
    """The best instruction set of the operations on this processor, or that which TALLOW_CPU names.

    Raises:
        UsageError: TALLOW_CPU names one that this processor or this build does not have.
    """
    extension = native()
    assert extension is not None
    known: list[str] = extension.operation_sets()
    wanted = os.environ.get("TALLOW_CPU", known[0])
    if wanted not in known:
        raise UsageError(f"TALLOW_CPU={wanted} cannot run here", f"choose one of {', '.join(known)}")
    return wanted


@functools.cache
def operations(name: str) -> Any:
    """The operations of this instruction set, as the extension's functions take them."""
    extension = native()
    assert extension is not None
    return next(operations for operations in extension.operations() if operations.name == name)
