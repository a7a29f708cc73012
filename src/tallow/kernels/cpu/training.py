"""Fused operations of training in C++: tensors are checked here, because only addresses go on.

Backward passes keep what the forward pass was given and a number a row, nothing else.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tallow.kernels.cpu import native, operation_set, operations
from tallow.kernels.threads import num_threads

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor | None:
    """`tallow.kernels.fused.cross_entropy`; None for what it does not take."""
    if not _suits(logits_NV, targets_N) or len(logits_NV) == 0 or int(targets_N.max()) >= logits_NV.shape[1]:
        return None
    return _CrossEntropy.apply(logits_NV, targets_N)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor | None:
    """`tallow.kernels.fused.rms_norm`; None for what it does not take."""
    if not _suits(x, weight_D) or weight_D.dtype != x.dtype or weight_D.dim() != 1:
        return None
    if dtype not in (None, torch.float32, torch.bfloat16):
        return None
    return _RMSNorm.apply(x, weight_D, eps, dtype or x.dtype)


def gate(gate: Tensor, up: Tensor, activation: str) -> Tensor | None:
    """`tallow.kernels.fused.gate`; None for what it does not take."""
    if not _suits(gate, up) or gate.dtype != up.dtype or gate.shape != up.shape:
        return None
    return _Gate.apply(gate, up, _ACTIVATIONS[activation])


def rotate(x_BHTd: Tensor, cos_B1Tr: Tensor, sin_B1Tr: Tensor) -> Tensor | None:
    """`tallow.kernels.fused.rotate`; None for what it does not take."""
    batch, _, tokens, size = x_BHTd.shape
    angles = cos_B1Tr.shape
    if not _suits(cos_B1Tr, sin_B1Tr) or cos_B1Tr.dtype != torch.float32 or not is_plain(x_BHTd):
        return None
    if angles[0] not in (1, batch) or angles[1:3] != (1, tokens) or 2 * angles[3] > size or x_BHTd.stride(3) != 1:
        return None
    return _Rotate.apply(x_BHTd, cos_B1Tr, sin_B1Tr)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is memory of this process, not a part of something that other processes have, too."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu


def _suits(*tensors: Tensor) -> bool:
    return native() is not None and all(is_plain(tensor) and tensor.is_contiguous() for tensor in tensors)


def _extension() -> Any:
    return native()


def _ops() -> Any:
    return operations(operation_set())


class _CrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, when the logits are in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        losses_N = torch.empty(len(logits_NV))
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        _extension().cross_entropy(
            _ops(),
            logits_NV.dtype == torch.bfloat16,
            logits_NV.data_ptr(),
            targets_N.data_ptr(),
            *logits_NV.shape,
            losses_N.data_ptr(),
            gradient_NV.data_ptr() if gradient_NV is not None else 0,
            num_threads(),
        )
        if gradient_NV is not None:
            ctx.save_for_backward(gradient_NV)
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        [gradient_NV] = ctx.saved_tensors
        factor = outer[0].item()
        return gradient_NV if factor == 1.0 else gradient_NV * factor, None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out, inverses_N = torch.empty_like(x, dtype=dtype), torch.empty(x.shape[:-1])
        _extension().rms_forward(
            _ops(),
            dtype == torch.bfloat16,
            x.data_ptr(),
            weight_D.data_ptr(),
            inverses_N.numel(),
            x.shape[-1],
            eps,
            out.data_ptr(),
            inverses_N.data_ptr(),
            num_threads(),
        )
        ctx.save_for_backward(x, weight_D, inverses_N)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, inverses_N = ctx.saved_tensors
        gradient = outer[0].contiguous()
        by_x, by_weight_D = torch.empty_like(x), torch.empty_like(weight_D)
        _extension().rms_backward(
            _ops(),
            gradient.dtype == torch.bfloat16,
            x.data_ptr(),
            weight_D.data_ptr(),
            inverses_N.data_ptr(),
            gradient.data_ptr(),
            inverses_N.numel(),
            x.shape[-1],
            by_x.data_ptr(),
            by_weight_D.data_ptr(),
            num_threads(),
        )
        return by_x, by_weight_D, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: int) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.inputs = activation, None
        return _gate(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = _inputs_of_gate(ctx)
        ctx.inputs = None
        gradient, by_gate, by_up = outer[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        _extension().gate_backward(
            _ops(),
            gate.dtype == torch.bfloat16,
            ctx.activation,
            gate.data_ptr(),
            up.data_ptr(),
            gradient.data_ptr(),
            gate.numel(),
            by_gate.data_ptr(),
            by_up.data_ptr(),
            num_threads(),
        )
        return by_gate, by_up, None


def _gate(gate: Tensor, up: Tensor, activation: int) -> Tensor:
    out = torch.empty_like(gate)
    _extension().gate_forward(
        _ops(),
        gate.dtype == torch.bfloat16,
        activation,
        gate.data_ptr(),
        up.data_ptr(),
        gate.numel(),
        out.data_ptr(),
        num_threads(),
    )
    return out


def making_again(gated: Tensor) -> AbstractContextManager[object]:
    """Within this block, nothing keeps `gated`, a result of `gate`, for its backward pass: it is made again."""
    node: Any = gated.grad_fn
    if not hasattr(node, "activation"):  # not made here
        return nullcontext()
    address, bytes_ = gated.data_ptr(), gated.nbytes

    def pack(kept: Tensor) -> Tensor | torch.Size:
        same = type(kept) is Tensor and kept.data_ptr() == address and kept.nbytes == bytes_
        return kept.shape if same else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else _gate(*_inputs_of_gate(node), node.activation).view(kept)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _inputs_of_gate(node: Any) -> tuple[Tensor, Tensor]:
    """What a gate has kept, wherever that is: it can be asked for once."""
    if node.inputs is None:
        node.inputs = node.saved_tensors
    return node.inputs


class _Rotate(torch.autograd.Function):
    """What comes out lies head by head, as attention reads it; the gradient token by token, as projections do."""

    @staticmethod
    def forward(ctx: Any, x_BHTd: Tensor, cos_B1Tr: Tensor, sin_B1Tr: Tensor) -> Tensor:
        ctx.save_for_backward(cos_B1Tr, sin_B1Tr)
        return _rotate(x_BHTd, cos_B1Tr, sin_B1Tr, 1.0, torch.empty(x_BHTd.shape, dtype=x_BHTd.dtype))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient_BHTd = outer[0] if outer[0].stride(3) == 1 else outer[0].contiguous()
        batch, heads, tokens, size = gradient_BHTd.shape
        out_BHTd = torch.empty(batch, tokens, heads, size, dtype=gradient_BHTd.dtype).transpose(1, 2)
        cos_B1Tr, sin_B1Tr = ctx.saved_tensors
        return _rotate(gradient_BHTd, cos_B1Tr, sin_B1Tr, -1.0, out_BHTd), None, None


def _rotate(x_BHTd: Tensor, cos_B1Tr: Tensor, sin_B1Tr: Tensor, sign: float, out_BHTd: Tensor) -> Tensor:
    batch, heads, tokens, size = x_BHTd.shape
    places = [(x.stride(0), x.stride(2), x.stride(1)) for x in (x_BHTd, out_BHTd)]
    _extension().rotate_heads(
        _ops(),
        x_BHTd.dtype == torch.bfloat16,
        x_BHTd.data_ptr(),
        places[0],
        out_BHTd.data_ptr(),
        places[1],
        (batch, tokens, heads),
        size,
        cos_B1Tr.data_ptr(),
        sin_B1Tr.data_ptr(),
        cos_B1Tr.stride(0) if len(cos_B1Tr) > 1 else 0,
        cos_B1Tr.shape[3],
        sign,
        num_threads(),
    )
    return out_BHTd
