"""Tensors on their way from the CPU to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the copy is under way when this returns, and whatever is computed there waits for it.

    A GPU reads memory that cannot be paged out by itself; without a GPU there is no such memory.
    """
    if tensor.device.type == "cpu" and device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.contiguous().pin_memory()  # what is not contiguous would be copied once more
    return tensor.to(device, non_blocking=True)
