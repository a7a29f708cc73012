"""The kernel against exact sums: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels.quantized import dequantize, quantize_groups

multiplying = pytest.importorskip("tallow.kernels.triton.quantized_linear", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies the bits of bfloat16 as integers
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@settings(max_examples=25)
@given(
    rows=st.sampled_from([1, 2, 7, 16, 20, 64, 65, 100]),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 11),
    group_size=st.sampled_from([32, 64, 96, 128]),
    bits=st.sampled_from([4, 6, 8]),
    dtype=st.sampled_from([torch.float32, HALF]),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_contract(
    rows: int, outputs: int, groups: int, group_size: int, bits: int, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    weight = quantize_groups(random(outputs, groups * group_size, seed=seed), bits, group_size)
    x_BI = random(rows, weight.in_features, seed=seed + 1).to(dtype)
    bias_O = random(outputs, seed=seed + 2).to(dtype) if biased else None
    result = multiplying.quantized_linear(x_BI, weight.codes, weight.scales, bias_O, bits)
    assert result.dtype == dtype
    # in half precision weights and result are rounded besides
    dense, bias = dequantize(weight, dtype).double(), bias_O.double() if bias_O is not None else torch.zeros(1)
    exact = x_BI.double() @ dense.T + bias.to(DEVICE)
    bound = 1e-5 * (x_BI.double().abs() @ dense.abs().T + bias.to(DEVICE).abs())
    if dtype == HALF:
        bound += torch.finfo(HALF).eps * exact.abs()
    assert ((result.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_shares_of_the_inputs(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few programs as possible, and as many; turns that do not divide into shares evenly."""
    weight, x_BI = quantize_groups(random(40, 1600, seed=1), bits), random(3, 1600, seed=2)
    weight = weight.to(DEVICE)
    for programs in (1, 6, 256):
        monkeypatch.setattr(multiplying, "PROGRAMS", programs)
        result = multiplying.quantized_linear(x_BI, weight.codes, weight.scales, None, bits)
        torch.testing.assert_close(result, x_BI @ dequantize(weight).T, atol=2e-4, rtol=1e-5)


def test_leading_dimensions_and_strides() -> None:
    weight, x = quantize_groups(random(24, 64, seed=1), 8), random(64, 3, 2, seed=2).permute(2, 1, 0)
    result = multiplying.quantized_linear(x, weight.codes, weight.scales, None, 8)
    torch.testing.assert_close(result, x @ dequantize(weight).T, atol=1e-4, rtol=1e-5)


def test_other_rows_and_widths_are_left_to_the_reference() -> None:
    weight = quantize_groups(random(24, 64, seed=1), 4)
    for shape in ((0, 64), (257, 64), (1, 32), (2, 65)):
        assert multiplying.quantized_linear(random(*shape, seed=2), weight.codes, weight.scales, None, 4) is None
