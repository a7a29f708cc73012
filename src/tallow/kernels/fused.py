"""What lies between the matrix products of training, each in one pass forward and one backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.kernels.cpu import training
from tallow.kernels.dispatch import Operation

Activation = Literal["silu", "gelu", "gelu_tanh"]
IGNORED = -100


@Operation
def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood summed over the targets, in nats, fp32; a target `IGNORED` does not count.

    It computes in fp32, and its gradient is of the dtype of the logits.
    """
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum", ignore_index=IGNORED)


@Operation
def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """`x / rms(x) · weight` over the last dimension (arXiv 1910.07467), rounded to `dtype` if there is one.

    The normalized value is rounded to x's dtype before it is multiplied, as most families were trained.
    """
    normed = weight_D * F.rms_norm(x, weight_D.shape, eps=eps)
    return normed if dtype is None else normed.to(dtype)


@Operation
def gate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """`act(gate) · up`, entry by entry (arXiv 2002.05202)."""
    return activate(gate, activation) * up


def gated(gate_up: tuple[Tensor, Tensor], activation: Activation, down: Callable[[Tensor], Tensor]) -> Tensor:
    """`down(gate(…))`; the product between them, which costs next to nothing, is made again for the backward pass."""
    product = gate(*gate_up, activation)
    if torch.compiler.is_compiling():  # the compiler chooses by itself what is kept
        return down(product)
    with training.making_again(product):
        return down(product)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of this name, entry by entry."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def operand(x: Tensor) -> Tensor:
    """What matrix products read of `x`, where several read it.

    Under autocast each of them would round it for itself, and keep that for the backward pass.
    """
    dtype = operand_dtype(x)
    return x if dtype is None else x.to(dtype)


def operand_dtype(x: Tensor) -> torch.dtype | None:
    """What `operand` rounds to, if anything."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@Operation
def rotate(x_BHTd: Tensor, cos_B1Tr: Tensor, sin_B1Tr: Tensor) -> Tensor:
    """Rotate the first `2 r` entries of each head, pairing entry i with entry i + r (arXiv 2104.09864)."""
    cos, sin = cos_B1Tr.to(x_BHTd.dtype), sin_B1Tr.to(x_BHTd.dtype)
    half = cos.shape[-1]
    first, second, rest = x_BHTd.split((half, half, x_BHTd.shape[-1] - 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


cross_entropy.fast("cpu", torch.float32, torch.bfloat16)(training.cross_entropy)
rms_norm.fast("cpu", torch.float32)(training.rms_norm)
gate.fast("cpu", torch.float32, torch.bfloat16)(training.gate)
rotate.fast("cpu", torch.float32, torch.bfloat16)(training.rotate)
