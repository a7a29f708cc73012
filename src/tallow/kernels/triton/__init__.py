"""Kernels for GPUs in Triton's language; the modules beside this one import Triton, and are imported when needed."""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def is_available() -> bool:
    """Whether Triton is installed; PyTorch's builds for CUDA bring it along on Linux."""
    return importlib.util.find_spec("triton") is not None
