"""Codes against GGUF's, errors against their bound, and sums against exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_values
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.kernels.dispatch import using
from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups, quantized_linear, unpack_codes

group_sizes = st.sampled_from([32, 64, 96, 128])
bit_widths = st.sampled_from([4, 6, 8])
seeds = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_groups_of_32_in_8_bits_are_those_of_gguf(scale: float) -> None:
    weight_OI = random(50, 320, seed=1) * scale
    weight_OI[3, 32:64] = 0
    weight_OI[4] = torch.arange(-160, 160) / 8 * scale  # many ties
    quantized = quantize_groups(weight_OI, 8)
    blocks = torch.cat(
        [quantized.scales.view(torch.uint8).view(50, 10, 2), quantized.codes.view(torch.uint8).view(50, 10, -1)], 2
    )
    assert np.array_equal(blocks.flatten(1).numpy(), quantize(weight_OI.numpy(), GGMLQuantizationType.Q8_0))


@given(st.integers(1, 9), st.integers(1, 9), group_sizes, seeds, st.sampled_from([1e-6, 1e-3, 1.0, 300.0]))
def test_scales_of_4_bits_are_multiples_of_the_rows(
    outputs: int, groups: int, group_size: int, seed: int, size: float
) -> None:
    """Exactly, in float16; and of the multiples that the groups could have none is much better."""
    weight_OI = random(outputs, groups * group_size, seed=seed) * size
    weight_OI[:, :group_size] *= torch.logspace(-3, 0, outputs)[:, None]
    quantized = quantize_groups(weight_OI, 4, group_size)
    weight_OGg, scales_OG = weight_OI.unflatten(1, (-1, group_size)), quantized.scales.double()
    mantissa_O1, exponent_O1 = torch.frexp(weight_OI.abs().amax(1, keepdim=True).double() / 8 / 15)
    unit_O1 = (mantissa_O1 * 128 + 0.5).floor() / 128 * 2.0**exponent_O1
    unit_O1 = ((unit_O1 * 2**24).round() / 2**24).clamp(min=2**-24)
    multiples_OG = scales_OG / unit_O1
    assert torch.equal(multiples_OG, multiples_OG.round())
    assert ((multiples_OG.abs() >= 1) & (multiples_OG.abs() <= 15)).all()
    found = (dequantize(quantized).double() - weight_OI).square().unflatten(1, (-1, group_size)).sum(2)
    largest_OG1 = weight_OGg.gather(2, weight_OGg.abs().argmax(2, keepdim=True)).double()
    for multiple in range(1, 16):
        scale_OG1 = -largest_OG1.sign() * multiple * unit_O1[:, :, None]
        codes = (weight_OGg / scale_OG1 + 8.5).floor().clamp(0, 15) - 8
        error_OG = (codes * scale_OG1 - weight_OGg).square().sum(2)
        wanted_OG = largest_OG1[..., 0].abs() / 8 / unit_O1
        is_neighbour = (wanted_OG - multiple).abs() < 1.49
        assert (found <= torch.where(is_neighbour, error_OG * 1.001, torch.inf)).all()


def test_4_bits_lose_less_than_rounding_to_the_largest() -> None:
    weight_OI = random(64, 1536, seed=0)
    error = (dequantize(quantize_groups(weight_OI, 4)) - weight_OI).norm() / weight_OI.norm()
    blocks = quantize(weight_OI.numpy(), GGMLQuantizationType.Q4_0)
    gguf = torch.from_numpy(gguf_values(blocks, GGMLQuantizationType.Q4_0))
    assert error < (gguf - weight_OI).norm() / weight_OI.norm()


@given(st.integers(1, 9), st.integers(1, 5), group_sizes, bit_widths, seeds, st.sampled_from([1e-4, 1.0, 300.0]))
def test_error_is_at_most_half_a_scale(
    outputs: int, groups: int, group_size: int, bits: int, seed: int, size: float
) -> None:
    weight_OI = random(outputs, groups * group_size, seed=seed) * size
    quantized = quantize_groups(weight_OI, bits, group_size)
    error = (dequantize(quantized) - weight_OI).abs().unflatten(1, (-1, group_size))
    scales = quantized.scales.float().unsqueeze(2)
    # A float16 scale is off by up to 2^-11 of itself, or of the smallest normal one; a code multiplies that.
    rounding = (scales.abs().clamp(min=2**-14) * 2**-11) * (127 if bits == 8 else 2 ** (bits - 1))
    scaled = weight_OI.unflatten(1, (-1, group_size)) / scales
    cut = (scaled > 2 ** (bits - 1) - 0.5) & (bits < 8)
    if bits == 4:
        cut |= scaled < -8.5  # a group's scale may be a multiple below what its largest element wants
    limit = torch.where(cut, (scaled.abs() - 7).clamp(min=1.0) if bits == 4 else 1.0, 0.5)
    assert (error <= limit * scales.abs() + rounding * 1.001).all()


def test_codes_of_6_bits_lie_where_the_format_says() -> None:
    """Groups of 64 whose element j is j - 32 and 31 - j scales: code by code, read from the bytes."""
    ascending = torch.arange(64) - 32
    scale = torch.tensor([0.5, -0.25])
    weight_OI = torch.cat([ascending * scale[0], ascending.flip(0) * scale[1]])[None, :]
    quantized = quantize_groups(weight_OI, 6, 64)
    assert quantized.codes.shape == (1, 96)
    assert torch.equal(quantized.scales.float(), scale[None, :])
    groups = quantized.codes.view(2, 48).tolist()
    codes = [
        [(group[j % 32] >> 4 * (j // 32) & 15) | (group[32 + j % 16] >> 2 * (j // 16) & 3) << 4 for j in range(64)]
        for group in groups
    ]
    assert codes == [list(range(64)), list(range(63, -1, -1))]
    assert torch.equal(unpack_codes(quantized), torch.cat([ascending, ascending.flip(0)])[None, :].to(torch.int8))
    assert torch.equal(dequantize(quantized), weight_OI)


@given(group_sizes, seeds)
def test_values_of_6_bits_are_those_of_their_definition(group_size: int, seed: int) -> None:
    weight_OGg = random(5, 3, group_size, seed=seed)
    quantized = quantize_groups(weight_OGg.flatten(1), 6, group_size)
    codes_OGg = unpack_codes(quantized).view(weight_OGg.shape).int() + 32
    largest = weight_OGg.gather(2, weight_OGg.abs().argmax(2, keepdim=True))
    exact = (weight_OGg * (1 / (largest / -32)) + 32.5).trunc().clamp(0, 63)
    assert torch.equal(codes_OGg, exact.int())
    assert (codes_OGg.amin(2) == 0).all()  # of the element of largest magnitude
    values = quantized.scales.float().unsqueeze(2) * (codes_OGg - 32)
    assert torch.equal(dequantize(quantized), values.flatten(1))


@given(st.integers(1, 9), group_sizes, st.sampled_from([6, 8]), seeds)
def test_quantizing_again_loses_nothing(outputs: int, group_size: int, bits: int, seed: int) -> None:
    once = quantize_groups(random(outputs, 2 * group_size, seed=seed), bits, group_size)
    twice = quantize_groups(dequantize(once), bits, group_size)
    assert torch.equal(dequantize(twice), dequantize(once))


@given(st.integers(1, 20), st.integers(1, 40), group_sizes, bit_widths, st.booleans(), seeds)
def test_reference_keeps_the_contract(
    rows: int, outputs: int, group_size: int, bits: int, biased: bool, seed: int
) -> None:
    weight = quantize_groups(random(outputs, 2 * group_size, seed=seed), bits, group_size)
    x_BI = random(rows, weight.in_features, seed=seed + 1)
    bias_O = random(outputs, seed=seed + 2) if biased else None
    dense, bias = dequantize(weight).double(), bias_O.double() if bias_O is not None else torch.zeros(1)
    exact = x_BI.double() @ dense.T + bias
    bound = 1e-5 * (x_BI.double().abs() @ dense.abs().T + bias.abs())
    with using("reference"):
        assert ((quantized_linear(x_BI, weight, bias_O).double() - exact).abs() <= bound).all()


def test_leading_dimensions_strides_and_many_rows() -> None:
    weight = quantize_groups(random(24, 64, seed=1), 8)
    x = random(64, 3, 2, seed=2).permute(2, 1, 0)
    assert torch.allclose(quantized_linear(x, weight), x @ dequantize(weight).T, atol=1e-5)
    many = random(4, 9, 64, seed=3)
    assert torch.allclose(quantized_linear(many, weight), many @ dequantize(weight).T, atol=1e-5)
    assert quantized_linear(random(0, 64, seed=4), weight).shape == (0, 24)


def test_gradients_reach_the_inputs() -> None:
    weight = quantize_groups(random(24, 64, seed=1), 4)
    x_BI = random(2, 64, seed=2).requires_grad_()
    quantized_linear(x_BI, weight).sum().backward()
    assert x_BI.grad is not None
    assert torch.allclose(x_BI.grad, dequantize(weight).sum(0).expand(2, 64), atol=1e-6)


@pytest.mark.parametrize("bad_input", [random(1, 32, seed=1), random(1, 65, seed=1)])
def test_wrong_inputs_are_refused(bad_input: Tensor) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        quantized_linear(bad_input, quantize_groups(random(24, 64, seed=1), 4))


def test_a_wrong_bias_is_refused() -> None:
    with pytest.raises(RuntimeError):
        quantized_linear(random(1, 64, seed=1), quantize_groups(random(24, 64, seed=1), 4), torch.zeros(23))


@pytest.mark.parametrize(
    ("shape", "bits", "group_size"),
    [
        ((4, 64), 3, 32),
        ((4, 64), 5, 32),
        ((4, 80), 6, 32),
        ((4, 64), 4, 48),
        ((4, 64), 4, 0),
        ((4, 80), 4, 32),
        ((64,), 4, 32),
    ],
)
def test_what_cannot_be_quantized_is_refused(shape: tuple[int, ...], bits: int, group_size: int) -> None:
    with pytest.raises(UsageError):
        quantize_groups(torch.zeros(shape), bits, group_size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e9])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_weights_that_scales_cannot_hold_are_refused(value: float, bits: int) -> None:
    weight_OI = random(4, 64, seed=1)
    weight_OI[2, 40] = value
    with pytest.raises(DataError):
        quantize_groups(weight_OI, bits)


@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.zeros(4, 31, dtype=torch.uint8)},
        {"codes": torch.zeros(3, 32, dtype=torch.uint8)},
        {"codes": torch.zeros(4, 32, dtype=torch.int8)},
        {"codes": torch.zeros(4, 64, dtype=torch.uint8)[:, ::2]},
        {"scales": torch.zeros(4, 2)},
        {"scales": torch.zeros(4, dtype=torch.float16)},
        {"bits": 8},
        {"bits": 6},
        {"bits": 5},
        {"codes": torch.zeros(4, 48, dtype=torch.uint8)},
        {"bits": 6, "codes": torch.zeros(4, 48, dtype=torch.int8)},
        {"group_size": 0},
        {"group_size": -32},
        {"group_size": 64},
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Tensor | int]) -> None:
    whole = quantize_groups(random(4, 64, seed=1), 4)
    parts = {"codes": whole.codes, "scales": whole.scales, "bits": 4, "group_size": 32}
    QuantizedWeight(**parts)
    QuantizedWeight(**{**parts, "bits": 6, "codes": torch.zeros(4, 48, dtype=torch.uint8)})
    with pytest.raises(DataError):
        QuantizedWeight(**{**parts, **change})
