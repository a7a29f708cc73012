"""Blocks are unpacked as the gguf package unpacks them, to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels import cpu
from tallow.kernels.blocks import BlockWeight, has_native_blocks, unpack_blocks
from tallow.kernels.dispatch import using

NATIVE = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
needs_native = pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")


def random_blocks(kind: Kind, rows: int, blocks: int, seed: int) -> BlockWeight:
    """Any bytes are blocks; scales may be anything that half precision knows."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(seed).integers(0, 256, (rows, blocks * size), dtype=np.uint8)
    return BlockWeight(torch.from_numpy(stored), int(kind), blocks * elements)


def bits(values: Tensor) -> Tensor:
    """Of floats, with one NaN for all."""
    return torch.where(values.isnan(), torch.nan, values).view(torch.int32)


@needs_native
@given(st.sampled_from(NATIVE), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_as_the_reference(kind: Kind, rows: int, blocks: int, seed: int) -> None:
    weight = random_blocks(kind, rows, blocks, seed)
    assert has_native_blocks(kind)
    fast = unpack_blocks(weight)
    with using("reference"):
        assert torch.equal(bits(fast), bits(unpack_blocks(weight)))
    assert fast.shape == (weight.out_features, weight.in_features)


def test_other_kinds_are_the_reference_s() -> None:
    assert not has_native_blocks(Kind.Q2_K)
    weight = random_blocks(Kind.Q2_K, 3, 2, 0)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.dequantize(weight.blocks.numpy(), Kind.Q2_K))
    assert torch.equal(bits(unpack_blocks(weight)), bits(expected))


def test_unknown_kinds() -> None:
    with pytest.raises(NotImplementedError):
        unpack_blocks(random_blocks(Kind.Q8_K, 1, 1, 0))
