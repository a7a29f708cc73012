"""Weights in the blocks of GGUF files: small integers that share scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.kernels import cpu
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.threads import num_threads

Q4_0 = 2
"""GGUF's number of the blocks whose codes are those of `QuantizedWeight` in 4 bits."""
_ELEMENTS_AT_ONCE = 1 << 20  # by the reference, whose intermediate results are several times as large as its result


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """The weight of a linear layer, O outputs by I inputs, as GGUF stores it.

    Args:
        blocks: uint8, O × the bytes of a row.
        kind: GGUF's number of the type of the blocks (`gguf.GGMLQuantizationType`).
        in_features: I.
    """

    blocks: Tensor
    kind: int
    in_features: int

    @property
    def out_features(self) -> int:
        return self.blocks.shape[0]


def has_native_blocks(kind: int) -> bool:
    """Whether the C++ kernels know a type of blocks."""
    extension = cpu.native()
    return extension is not None and extension.has_block_type(kind)


def unpack_blocks(weight: BlockWeight) -> Tensor:
    """The values that the blocks stand for, O × I in float32; the same to the bit whoever computes them.

    Raises:
        NotImplementedError: Neither the C++ kernels nor the `gguf` package know the type.
    """
    blocks, kind = weight.blocks.contiguous(), weight.kind
    values = torch.empty(weight.out_features, weight.in_features)
    extension = cpu.native()
    if extension is None or not prefers_fast() or not has_native_blocks(kind):
        _unpack_reference(blocks, kind, values)
        return values
    extension.unpack_blocks(kind, blocks.data_ptr(), blocks.numel(), values.data_ptr(), num_threads())
    return values


def _unpack_reference(blocks: Tensor, kind: int, out: Tensor) -> None:
    # 20 ms that only those pay who have such files
    import gguf
    import numpy as np

    rows = max(1, _ELEMENTS_AT_ONCE // out.shape[1])
    for part, values in zip(blocks.split(rows), out.split(rows), strict=True):
        with np.errstate(all="ignore"):  # a broken file may hold scales that overflow
            values.copy_(torch.from_numpy(gguf.dequantize(part.numpy(), gguf.GGMLQuantizationType(kind))))
