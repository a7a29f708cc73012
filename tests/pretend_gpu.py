"""A GPU where there is none: tensors on `cuda` that have everything but values, and a count of who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
_aten = torch.ops.aten
MOVES = (_aten._to_copy.default, _aten.copy_.default)


class PretendGpu(TorchDispatchMode):
    """Operations on `cuda` compute shapes, dtypes and devices; all others what they compute anyway.

    An operation that is given tensors of both fails, as on a GPU, unless it copies from one to the other.

    Attributes:
        waits: Operations whose result the CPU would have had to wait for.
    """

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes = fakes
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        leaves = tree_leaves((args, named))
        is_here = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not is_here and not any(isinstance(leaf, torch.device) and leaf.type == NAME for leaf in leaves):
            with unset_fake_temporarily():
                return func(*args, **named)
        if func is _aten._local_scalar_dense.default:
            self.waits.append("item")
            return 1.0
        if is_here and func in MOVES and self._goes_home(func, args, named):
            self.waits.append("copy to the CPU")
            with unset_fake_temporarily():
                return torch.ones(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
        if func not in MOVES:
            strangers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)]
            assert all(leaf.ndim == 0 for leaf in strangers), f"{func} is given tensors of the CPU and of the GPU"
        args, named = tree_map(self._known, (args, named))
        return func(*args, **named)

    def _known(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            with unset_fake_temporarily():
                return self.fakes.from_tensor(value)
        return value

    @staticmethod
    def _goes_home(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
        if func is _aten.copy_.default:
            return args[0].device.type == "cpu"
        device = named.get("device")
        return device is not None and torch.device(device).type == "cpu"


class _Backend(_DummyBackendModule):
    """What `torch.autocast` asks of a device."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Within this block there is a device `pretended`; the process keeps it, so let it be one of its own."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes, PretendGpu(fakes) as gpu:
        yield gpu
