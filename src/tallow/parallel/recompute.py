"""Activations that are computed again in the backward pass, so that they need not be kept (arXiv 1604.06174).

Applied to a model's layers from outside. What is learned stays the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tallow.kernels.cpu import causal_attention
from tallow.parallel.shares import own_share

Recompute = Literal["none", "selective", "block"]

_aten = torch.ops.aten
# what takes long to compute for the memory that it needs (arXiv 2205.05198, section 5)
KEPT = frozenset(
    (
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_mm.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        causal_attention.operators().causal_attention.default,
    )
)


def recompute(layers: Sequence[nn.Module], how: Recompute) -> None:
    """Let layers forget what they need for the backward pass.

    Args:
        layers: Some of a model's.
        how: `block`: a layer keeps nothing but its input. `selective`: it also keeps the results of matrix products and
            attention, so that little is computed twice.
    """
    if how == "none":
        return
    contexts = {"context_fn": _selective} if how == "selective" else {}
    for layer in layers:
        forward = layer.forward
        layer.forward = partial(_forget, forward, contexts)


def layers_to_recompute(num_layers: int, layer_bytes: float, freed_bytes: float, budget: float) -> int:
    """How many layers must forget so that what all keep fits into a budget; all, if it cannot.

    Args:
        layer_bytes: What a layer keeps for its backward pass.
        freed_bytes: What it keeps less if it forgets.
        budget: Bytes for all of them, and for what the one has again whose backward pass is going on.
    """
    excess = num_layers * layer_bytes - budget
    if excess <= 0:
        return 0
    if freed_bytes <= 0:
        return num_layers
    return min(num_layers, math.ceil((excess + freed_bytes) / freed_bytes))


@dataclass
class LayerMemory:
    """Bytes that a layer keeps for its backward pass, and those that it would keep if it forgot."""

    kept: int = 0
    remembered: int = 0


@contextmanager
def measuring(layer: nn.Module, how: Recompute) -> Iterator[LayerMemory]:
    """Within such a block, what a layer keeps when it computes is counted; parameters do not count."""
    memory, seen, results = LayerMemory(), set[int](), _ResultBytes()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            memory.kept += storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)

    def begin(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.update(own_share(parameter).untyped_storage().data_ptr() for parameter in layer.parameters())
        memory.remembered += sum(value.nbytes for value in inputs if isinstance(value, Tensor))
        shared = (part for value in inputs if isinstance(value, tuple) for part in value)  # by all layers: angles
        seen.update(part.untyped_storage().data_ptr() for part in shared if isinstance(part, Tensor))
        hooks.__enter__()
        results.__enter__()

    def end(*_: object) -> None:
        results.__exit__(None, None, None)
        hooks.__exit__()

    handles = (layer.register_forward_pre_hook(begin), layer.register_forward_hook(end))
    yield memory
    for handle in handles:
        handle.remove()
    memory.remembered += results.total if how == "selective" else 0


class _ResultBytes(TorchDispatchMode):
    """Counts the results of the operations that `selective` keeps."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in KEPT:
            results = result if isinstance(result, tuple) else (result,)
            self.total += sum(value.nbytes for value in results if isinstance(value, Tensor))
        return result


def _forget(forward: Callable[..., Tensor], contexts: dict[str, Any], *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, **contexts)


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_context: object, operation: object, *_: object, **__: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
