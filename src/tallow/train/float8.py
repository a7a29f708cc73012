"""Linear layers whose matrix products are of 8-bit floats (arXiv 2209.05433), in place of a model's own.

Weights and inputs are rounded to e4m3, gradients to e5m2, which has less precision and more range (section 3 of the
paper). Each tensor is scaled so that its largest value becomes the largest of the format, as measured when it is
rounded. Products are summed in fp32. Weights, their gradients and updates are fp32, all else is as with bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallow.console import say
from tallow.errors import UsageError
from tallow.models.skeletons import Layered

WEIGHTS, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
# what the tensor cores take: Ada, Hopper and later, and sizes that are multiples of this
CAPABILITY, MULTIPLE = (8, 9), 16
LEAST_SCALE = 1e-12


class Rounded(NamedTuple):
    """A tensor in 8 bits, and the factor (fp32) that makes of them what it was."""

    values: Tensor
    scale: Tensor

    @property
    def transposed(self) -> Rounded:
        """Of a matrix."""
        return Rounded(self.values.t().contiguous(), self.scale)


def rounded(x: Tensor, dtype: torch.dtype) -> Rounded:
    """A tensor rounded to an 8-bit format, its largest absolute value to the largest of the format.

    What is not finite makes all of it NaN or zero, so that the loss, or its gradient, tells.
    """
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp(min=LEAST_SCALE)
    return Rounded((x.float() / scale).clamp(-largest, largest).to(dtype), scale)


def product(a_MK: Rounded, b_NK: Rounded, dtype: torch.dtype, *, fast: bool) -> Tensor:
    """`a b^T`, M N.

    Args:
        dtype: Of the result.
        fast: A GPU may sum with fewer bits than fp32 has.
    """
    # on a CPU autocast would reach what the product is made of, and round it once more
    with torch.autocast(a_MK.values.device.type, enabled=False):
        return torch.ops.aten._scaled_mm(
            a_MK.values, b_NK.values.t(), a_MK.scale, b_NK.scale, out_dtype=dtype, use_fast_accum=fast
        )


class Float8Linear(nn.Linear):
    """A linear layer that takes the place of another one, whose parameters it has."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # that of `nn.Linear` would make weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        x, kind = input, input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out = _Products.apply(x.to(dtype).flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.to(dtype)


def use_float8(model: Layered, device: torch.device, processes: int) -> None:
    """Replace the linear layers within a model's layers, in place.

    Others stay: what makes logits is sensitive to rounding, routers are (arXiv 2101.03961, section 2.4), experts are no
    linear layers, and sizes must be multiples of 16.

    Args:
        device: Where it will be trained.
        processes: Those that share each matrix.

    Raises:
        UsageError: The device has no such products, or the model no such layers.
    """
    _check_device(device)
    places = list(_suitable(model, MULTIPLE * processes))
    if not places:
        raise UsageError(
            f"no layer of the model has sizes that are multiples of {MULTIPLE * processes}, as float8 needs them",
            "set loop.precision to bf16",
        )
    for parent, name, linear in places:
        setattr(parent, name, Float8Linear(linear))


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        say("float8 on a CPU shows what rounding does to training; it is slower than bf16 there")
    elif (capability := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise UsageError(
            f"this GPU has no products of 8-bit floats: they need compute capability "
            f"{'.'.join(map(str, CAPABILITY))}, and it has {'.'.join(map(str, capability))}",
            "set loop.precision to bf16",
        )


def _suitable(model: Layered, multiple: int) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.layers.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child.in_features % multiple == child.out_features % multiple == 0:
                yield parent, name, child


class _Products(torch.autograd.Function):
    """`x W^T`, N O, and the products that are its gradients."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        x = rounded(x_NI, WEIGHTS)
        # the rounded weight is not kept: to make it again is little work, and all layers' would be memory for nothing
        ctx.save_for_backward(*x, weight_OI)
        ctx.dtype = x_NI.dtype
        return product(x, rounded(weight_OI, WEIGHTS), x_NI.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values_NI, scale, weight_OI = ctx.saved_tensors
        gradient_NO = rounded(gradients[0], GRADIENTS)
        by_x_NI = by_weight_OI = None
        if ctx.needs_input_grad[0]:
            by_x_NI = product(gradient_NO, rounded(weight_OI, WEIGHTS).transposed, ctx.dtype, fast=False)
        if ctx.needs_input_grad[1]:
            x_NI = Rounded(values_NI, scale)
            by_weight_OI = product(
                _filled(gradient_NO).transposed, _filled(x_NI).transposed, weight_OI.dtype, fast=False
            )
        return by_x_NI, by_weight_OI


def _filled(x_NI: Rounded) -> Rounded:
    """With rows of zeros, so that their number is a multiple of 16."""
    missing = -len(x_NI.values) % MULTIPLE
    if not missing:
        return x_NI
    as_bytes = F.pad(x_NI.values.view(torch.uint8), (0, 0, 0, missing))  # 8-bit floats know no padding
    return Rounded(as_bytes.view(x_NI.values.dtype), x_NI.scale)
