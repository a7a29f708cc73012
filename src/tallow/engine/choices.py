"""What a user chooses of a model that is loaded: precision, device, and where its weights are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tallow.errors import UsageError

Precision = Literal["auto", "fp32", "bf16", "q8", "q4"]
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
CachePrecision = Literal["auto", "fp32", "bf16", "q8"]
CACHE_PRECISIONS = ("auto", "fp32", "bf16", "q8")
Placement = Literal["auto", "memory", "mapped"]
PLACEMENTS = ("auto", "memory", "mapped")
Device = Literal["auto", "cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")

GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Linux has one of them where there is a GPU that PyTorch could find; `dxg` is that of its subsystem for Windows."""


def chooses_gpu(device: Device) -> bool:
    """Whether a model is to run on a GPU.

    Raises:
        UsageError: There is none.
    """
    may_have_one = sys.platform != "linux" or any(Path(file).exists() for file in GPU_FILES)
    if device == "cpu" or (device == "auto" and not may_have_one):
        return False
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no GPU here", "leave out the device, or install PyTorch's build for CUDA")
    return torch.cuda.is_available()
