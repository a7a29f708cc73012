"""Each operation of the C++ decoder against its definition, on every instruction set that this processor has.

U is half a unit in the last place of float32. A sum of n products, in whatever order, is within (n + 4) · U · Σ|x·w|.
"""

from __future__ import annotations

from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels import cpu
from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups

EXTENSION: Any = cpu.native()
NAMES: list[str] = EXTENSION.operation_sets() if EXTENSION else []
pytestmark = pytest.mark.skipif(EXTENSION is None, reason="installed without the C++ extension")

U = 2.0**-24
FLOAT32, BFLOAT16, INT8, INT4, INT6, COMPRESSED, NESTED = range(7)
BITS = {INT8: 8, INT4: 4, INT6: 6, NESTED: 4}
SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CODES = {8: 3, 4: 4, 6: 5}
STORE, ADD, ACTIVATE, GATE = range(4)
ACTIVATIONS = {0: F.silu, 1: F.gelu, 2: lambda x: F.gelu(x, approximate="tanh")}
NUMBERS = pytest.mark.parametrize("number", [FLOAT32, BFLOAT16, COMPRESSED, *BITS])
CACHES = pytest.mark.parametrize("number", [FLOAT32, BFLOAT16, INT8])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=NAMES, scope="module")
def ops(request: pytest.FixtureRequest) -> Any:
    return next(ops for ops in EXTENSION.operations() if ops.name == request.param)


@pytest.fixture(scope="module")
def packer() -> Any:
    """Its memory holds the packed weights."""
    return EXTENSION.Packer(0, 0, 1)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def with_room(rows: Tensor) -> Tensor:
    """Rows of whole panels, and some more behind them: what is there besides must not matter."""
    padded = torch.full((len(rows) + 1, up(rows.shape[1], 32) + 32), 7.0)
    padded[:-1, : rows.shape[1]] = rows
    return padded


def pack(
    packer: Any,
    number: int,
    weights: list[Tensor | QuantizedWeight],
    order: Tensor,
    group: int,
    bias: Tensor | None,
    groups_per_scale: int = 1,
) -> Any:
    inputs, sources = 0, []
    for weight in weights:
        if isinstance(weight, QuantizedWeight):
            inputs = weight.in_features
            sources.append((CODES[weight.bits], weight.codes.data_ptr(), weight.scales.data_ptr(), len(weight.codes)))
        else:
            inputs = weight.shape[1]
            sources.append((SOURCES[weight.dtype], weight.data_ptr(), 0, len(weight)))
    address = 0 if bias is None else bias.data_ptr()
    return packer.pack(number, sources, order.int().numpy(), inputs, group, groups_per_scale, address)


def held(weight_OI: Tensor, number: int, group: int) -> Tensor:
    """What a packed weight stands for."""
    if number in BITS:
        return dequantize(quantize_groups(weight_OI, BITS[number], group))
    return weight_OI if number == FLOAT32 else weight_OI.bfloat16().float()


def widths(inputs: int) -> list[int]:
    """Of groups that can share a scale."""
    return [width for width in range(1, 25) if inputs // 32 % width == 0]


class Rounded:
    """Activations as a weight is multiplied with them, by `round_row`; so many groups of 32 share a scale."""

    def __init__(
        self, ops: Any, number: int, x_BI: Tensor, weight: Any, width: int = 1, *, with_offsets: bool = True
    ) -> None:
        rows, self.inputs = x_BI.shape
        self.number, self.stride, self.width = number, up(self.inputs, 32) + 32, width
        dtype = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, COMPRESSED: torch.bfloat16}.get(number, torch.int8)
        self.values = torch.full((rows + 1, self.stride), 3, dtype=dtype)
        self.groups = self.inputs // 32
        self.scales = torch.zeros(rows, self.groups)
        self.offsets, self.byte_offsets = torch.zeros(2, rows, self.groups, dtype=torch.int32)
        x = with_room(x_BI)
        for row in range(rows):
            ops.round_row(weight, x[row].data_ptr(), self.view(with_offsets=with_offsets), row)

    def view(self, first: int = 0, *, with_offsets: bool = True) -> Any:
        parts = self.values[first], self.scales[first:], self.offsets[first:], self.byte_offsets[first:]
        values, scales, offsets, byte_offsets = (part.data_ptr() for part in parts)
        return EXTENSION.Activations(values, self.stride, scales, offsets * with_offsets, self.groups, byte_offsets)

    def floats(self) -> Tensor:
        values = self.values[:-1, : self.inputs].double()
        if self.number not in BITS:
            return values
        scales = self.scales[:, : self.groups // self.width].double()
        return values * scales.repeat_interleave(32 * self.width, dim=1)


def multiply(
    ops: Any,
    weight: Any,
    x: Rounded,
    outputs: int,
    *,
    mode: int = STORE,
    activation: int = 0,
    extra_BO: Tensor | None = None,
    into_BO: Tensor | None = None,
    first: int = 0,
    rows: int | None = None,
) -> Tensor:
    """Products of rows from the `first` on; whole panels."""
    rows = len(x.offsets) - first if rows is None else rows
    panels = -(-outputs // 32)
    out = torch.full((rows, panels * 32 + 16), 5.0)
    if into_BO is not None:
        out[:, : panels * 32] = into_BO
    extra = 0 if extra_BO is None else extra_BO[first:].data_ptr()
    panel = torch.empty(32 * x.inputs, dtype=torch.bfloat16)
    to = EXTENSION.Destination(mode, out.data_ptr(), out.shape[1], activation, extra, panels * 32, panel.data_ptr())
    ops.multiply(weight, x.view(first), to, rows, 0, panels)
    width = panels * 16 if mode == GATE else panels * 32
    assert (out[:, width:] == 5).all()
    return out[:, :width]


@pytest.mark.parametrize("mode", [STORE, ADD, ACTIVATE, GATE])
@NUMBERS
@settings(max_examples=20)
@given(data=st.data(), seed=seeds)
def test_products(ops: Any, packer: Any, number: int, mode: int, data: st.DataObject, seed: int) -> None:
    group = data.draw(st.sampled_from([32, 64, 128]))
    unit = group if number in BITS else 4 if number == COMPRESSED else 1
    inputs = unit * data.draw(st.integers(1, 9 if number in BITS else 90))
    outputs = data.draw(st.integers(1, 100))
    rows = data.draw(st.one_of(st.integers(1, 12), st.integers(13, 70)))
    activation = data.draw(st.sampled_from([0, 1, 2]))
    panels = -(-outputs // 32)
    weight_OI, x_BI = random(outputs, inputs, seed=seed), random(rows, inputs, seed=seed + 1) * 2
    bias_O = random(outputs, seed=seed + 2) if data.draw(st.booleans()) else None
    extra_BO = random(rows, panels * 32, seed=seed + 3) if data.draw(st.booleans()) else None
    into_BO = random(rows, panels * 32, seed=seed + 4) if mode == ADD else None
    width = data.draw(st.sampled_from(widths(inputs))) if number == NESTED else 1
    packed = pack(packer, number, [weight_OI], torch.arange(outputs), group, bias_O, width)
    x = Rounded(ops, number, x_BI, packed, width)
    result = multiply(
        ops, packed, x, outputs, mode=mode, activation=activation, extra_BO=extra_BO, into_BO=into_BO
    ).double()

    def wide(values_O: Tensor) -> Tensor:
        return F.pad(values_O.double(), (0, panels * 32 - outputs))

    w_OI = held(weight_OI, number, group).double()
    exact, size = wide(x.floats() @ w_OI.T), wide(x.floats().abs() @ w_OI.abs().T)
    for term in (None if bias_O is None else wide(bias_O), extra_BO, into_BO):
        if term is not None:
            exact, size = exact + term.double(), size + term.double().abs()
    error = (inputs + 8) * U * size
    act = ACTIVATIONS[activation]
    if mode == ACTIVATE:  # slopes are below 1.2; tanh and erf are good to 4e-7 of 1, and are multiplied with x
        exact, error = act(exact), 1.2 * error + 4e-7 * exact.abs()
    if mode == GATE:
        (gate, value), (gate_error, value_error) = (part.unflatten(1, (-1, 2, 16)).unbind(2) for part in (exact, error))
        exact = (act(gate) * value).flatten(1)
        error = (
            gate.abs() * value_error + (1.2 * gate_error + 4e-7 * gate.abs()) * (value.abs() + value_error)
        ).flatten(1)
    assert ((result - exact).abs() <= error + 1e-30).all()


@pytest.mark.parametrize("number", BITS)
def test_offsets_are_read_where_they_are_said_to_be(ops: Any, packer: Any, number: int) -> None:
    packed = pack(packer, number, [random(40, 64, seed=0)], torch.arange(40), 32, None)
    for rows in (1, 7, 8, 40, 255, 256, 257, 263, 264):
        x = Rounded(ops, number, random(rows, 64, seed=1), packed)
        expected = multiply(ops, packed, x, 40)
        for offsets in (x.offsets, x.byte_offsets):
            offsets += 1_000_000
        assert torch.equal(multiply(ops, packed, x, 40), expected) != ops.reads_offsets(rows)


@pytest.mark.parametrize("mode", [STORE, GATE])
@pytest.mark.parametrize(
    ("number", "width"), [*((number, 1) for number in [FLOAT32, BFLOAT16, COMPRESSED, *BITS]), (NESTED, 9)]
)
def test_a_row_is_the_same_alone_and_in_tiles_of_every_height(
    ops: Any, packer: Any, number: int, width: int, mode: int
) -> None:
    inputs, outputs, rows = 288 if number in BITS else 292, 70, 80
    packed = pack(packer, number, [random(outputs, inputs, seed=0)], torch.arange(outputs), 32, None, width)
    x = Rounded(ops, number, random(rows, inputs, seed=1), packed, width)
    together = multiply(ops, packed, x, outputs, mode=mode)
    for height in range(1, rows):
        for first in {0, height % 7, rows - height}:
            if first + height > rows:
                continue
            some = multiply(ops, packed, x, outputs, mode=mode, first=first, rows=height)
            assert torch.equal(some, together[first : first + height])


@NUMBERS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible_in_its_row_alone(ops: Any, packer: Any, number: int, bad: float) -> None:
    inputs, outputs = 64, 40
    packed = pack(packer, number, [random(outputs, inputs, seed=0)], torch.arange(outputs), 32, None)
    x_BI = random(3, inputs, seed=1)
    good = multiply(ops, packed, Rounded(ops, number, x_BI, packed), outputs)
    x_BI[1, 37] = bad
    result = multiply(ops, packed, Rounded(ops, number, x_BI, packed), outputs)
    assert not result[1, :outputs].isfinite().any()
    assert torch.equal(result[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@NUMBERS
def test_packed_floats_are_what_embed_reads_out(ops: Any, packer: Any, number: int, dtype: torch.dtype) -> None:
    group, inputs = 64, 192 if number in BITS else 140 if number == COMPRESSED else 83
    tables = [
        random(29, inputs, seed=0).to(dtype),
        random(18, inputs, seed=1).to(dtype) * (10 if number == COMPRESSED else 100),
    ]
    tables[0][5] = 0
    tables[1][7] = torch.arange(inputs) / 8 - 4  # ties
    rows = torch.cat(tables)
    order = torch.randperm(47, generator=torch.Generator().manual_seed(2))
    order[11] = -1
    packed = pack(packer, number, list(tables), order, group, None)
    expected = held(rows.float(), number, group)[order]
    expected[11] = 0
    out = torch.empty(len(order), inputs)
    for token in range(len(order)):
        ops.embed(packed, token, 1.0, out[token].data_ptr())
    assert torch.equal(out, expected)
    ops.embed(packed, 3, 5.5, out[0].data_ptr())
    assert torch.equal(out[0], expected[3] * 5.5)


def with_upper_bytes(common: list[int], others: list[int], places: Tensor, inputs: int, seed: int) -> Tensor:
    """A panel of bfloat16: common upper bytes, but for others at these places; lower bytes are any."""
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randint(0, 256, (32 * inputs,), generator=generator)
    upper = torch.tensor(common)[torch.randint(0, len(common), (32 * inputs,), generator=generator)]
    upper[places] = torch.tensor(others, dtype=torch.long)
    return (upper << 8 | lower).to(torch.uint16).view(torch.bfloat16).reshape(32, inputs)


upper_bytes = st.integers(0, 255)


@settings(max_examples=30)
@given(
    common=st.lists(upper_bytes, min_size=1, max_size=16),
    others=st.lists(upper_bytes, max_size=15),
    inputs=st.sampled_from([4, 60, 128]),
    seed=seeds,
)
def test_compression_loses_nothing(
    ops: Any, packer: Any, common: list[int], others: list[int], inputs: int, seed: int
) -> None:
    """Zeros of both signs, subnormal and infinite numbers and NaN among them, in one block of 128 inputs and two."""
    places = torch.randperm(32 * inputs, generator=torch.Generator().manual_seed(seed))[: len(others)]
    panel_OI = with_upper_bytes(common, others, places, inputs, seed)
    weight_OI = torch.cat([panel_OI, panel_OI.flip(1)]) if inputs < 128 else torch.cat([panel_OI, panel_OI], dim=1)
    outputs, inputs = weight_OI.shape
    plain, compressed = (
        pack(packer, number, [weight_OI], torch.arange(outputs), 32, None) for number in (BFLOAT16, COMPRESSED)
    )
    assert compressed.bytes == outputs // 32 * (-(-inputs // 128) * 64 + inputs * 48)
    x = Rounded(ops, BFLOAT16, random(21, inputs, seed=seed), plain)
    for rows in (1, 4, 21):
        expected, result = (multiply(ops, packed, x, outputs, rows=rows) for packed in (plain, compressed))
        nan = expected.isnan()  # what else a NaN holds depends on the order of operands, which is the compiler's choice
        assert torch.equal(result.isnan(), nan)
        assert torch.equal(result.view(torch.int32)[~nan], expected.view(torch.int32)[~nan])
    out = torch.empty(2, inputs)
    for token in range(outputs):
        for packed, row in zip((plain, compressed), out, strict=True):
            ops.embed(packed, token, 1.0, row.data_ptr())
        assert torch.equal(*out.view(torch.int32))


def test_rare_upper_bytes_have_room_up_to_fifteen_in_a_block(packer: Any) -> None:
    for count, inputs in ((15, 128), (16, 128), (30, 256), (16, 64)):
        places = torch.arange(count) * (32 * inputs // count)
        weight_OI = with_upper_bytes(list(range(48, 64)), list(range(64, 64 + count)), places, inputs, 0)
        if count in (15, 30):
            pack(packer, COMPRESSED, [weight_OI], torch.arange(32), 32, None)
        else:
            with pytest.raises(EXTENSION.Incompressible):
                pack(packer, COMPRESSED, [weight_OI], torch.arange(32), 32, None)


@pytest.mark.parametrize("group", [32, 64, 96, 128])
@pytest.mark.parametrize("number", BITS)
def test_codes_are_packed_as_they_are(ops: Any, packer: Any, number: int, group: int) -> None:
    generator, inputs, bits = torch.Generator().manual_seed(group), 2 * group, BITS[number]
    stored = torch.randint(0, 256, (37, inputs * bits // 8), generator=generator).to(torch.uint8)
    codes = stored.view(torch.int8) if bits == 8 else stored
    scales = random(37, 2, seed=group)
    if number == NESTED:
        scales = torch.randint(-15, 16, (37, 2), generator=generator) * torch.arange(1, 38)[:, None] / 1024
    weight = QuantizedWeight(codes, scales.half(), bits, group)
    packed = pack(packer, number, [weight], torch.arange(37), group, None)
    out = torch.empty(37, inputs)
    for token in range(37):
        ops.embed(packed, token, 1.0, out[token].data_ptr())
    assert torch.equal(out, dequantize(weight))
    # the greatest codes of weights times the greatest of activations: nothing is cut off on the way
    x = Rounded(ops, number, torch.ones(1, inputs), packed)
    exact = x.floats() @ out.double().T
    error = (multiply(ops, packed, x, 37)[:, :37] - exact).abs()
    assert (error <= (inputs + 8) * U * (x.floats() @ out.double().abs().T)).all()


@pytest.mark.parametrize("number", [INT4, NESTED])
def test_codes_of_q4_0_blocks_are_kept(ops: Any, packer: Any, number: int) -> None:
    blocks = torch.from_numpy(gguf.quants.quantize(random(37, 96, seed=0).numpy(), gguf.GGMLQuantizationType.Q4_0))
    if number == NESTED:
        weight = quantize_groups(random(37, 96, seed=0), 4)
        parts = weight.scales.view(torch.uint8).unflatten(1, (-1, 2)), weight.codes.unflatten(1, (-1, 16))
        blocks = torch.cat(parts, dim=2).flatten(1)
    source = 16 + gguf.GGMLQuantizationType.Q4_0, blocks.data_ptr(), 0, 37
    packed = packer.pack(number, [source], torch.arange(37).int().numpy(), 96, 32, 1, 0)
    out = torch.empty(37, 96)
    for token in range(37):
        ops.embed(packed, token, 1.0, out[token].data_ptr())
    values = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(out, torch.from_numpy(values))


@pytest.mark.parametrize("number", BITS)
def test_greatest_codes_do_not_saturate(ops: Any, packer: Any, number: int) -> None:
    bits = BITS[number]
    for byte, code in ((0x00, -(2 ** (bits - 1))), (0xFF, 2 ** (bits - 1) - 1)):
        codes = torch.full((32, 32 * bits // 8), byte, dtype=torch.uint8)
        weight = QuantizedWeight(
            (codes ^ 0x80).view(torch.int8) if bits == 8 else codes, torch.full((32, 1), 15.0).half(), bits, 32
        )
        packed = pack(packer, number, [weight], torch.arange(32), 32, None)
        for sign in (-127.0, 127.0):
            for rows in (1, 9):
                result = multiply(ops, packed, Rounded(ops, number, torch.full((rows, 32), sign), packed), 32)
                assert (result == 15 * 32 * code * sign).all()


@pytest.mark.parametrize(("number", "width"), [(NESTED, 0), (NESTED, 5), (NESTED, 36), (INT8, 2), (FLOAT32, 2)])
def test_groups_that_cannot_share_scales_are_refused(packer: Any, number: int, width: int) -> None:
    with pytest.raises(ValueError, match="cannot share"):
        pack(packer, number, [torch.ones(1, 36 * 32)], torch.arange(1), 32, None, width)


def test_scales_that_are_no_multiples_are_not_nested(packer: Any) -> None:
    def quantized(scales: list[float]) -> QuantizedWeight:
        return QuantizedWeight(torch.zeros(1, 48, dtype=torch.uint8), torch.tensor([scales]).half(), 4, 32)

    for scales in ([0.5, 1.25, -3.75], [0.0, 0.0, 0.0], [2.0**-24, 0.0, -15 * 2.0**-24], [7.0, 14.0, 1.0]):
        pack(packer, NESTED, [quantized(scales)], torch.arange(1), 32, None)
    for scales in ([0.5, 1.25, 0.501], [1.0, 16.0, 1.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(EXTENSION.Incompressible):
            pack(packer, NESTED, [quantized(scales)], torch.arange(1), 32, None)


@given(st.integers(1, 200), st.sampled_from(["rms", "layer"]), st.booleans(), st.sampled_from([1e-3, 1.0, 1e4]), seeds)
def test_norms(ops: Any, size: int, kind: str, has_bias: bool, scale: float, seed: int) -> None:
    x, weight, bias = (with_room(random(1, size, seed=seed + i) * s)[0] for i, s in enumerate([scale, 1, 1]))
    norm = EXTENSION.Norm(kind, weight.data_ptr(), bias.data_ptr() if has_bias else 0, 1e-5)
    out = torch.full_like(x, 9)
    ops.normalize(norm, x.data_ptr(), size, out.data_ptr())
    x64, weight64, bias64 = x[:size].double(), weight[:size].double(), bias[:size].double() * has_bias
    mean = x64.mean() if kind == "layer" else 0.0
    inverse = ((x64 - mean).square().mean() + 1e-5).rsqrt()
    exact = (x64 - mean) * inverse * weight64 + bias64
    # n / 16 + 4 additions for each sum, the mean's error being one of x's size, and a few roundings more
    error = (
        (size / 16 + 12)
        * U
        * ((x64.abs() + x64.abs().mean() + x64.abs().max()) * inverse * weight64.abs() + bias64.abs())
    )
    assert ((out[:size].double() - exact).abs() <= error).all()
    assert (out[size : up(size, 16)] == 0).all()
    x[size // 2] = float("nan")
    ops.normalize(norm, x.data_ptr(), size, out.data_ptr())
    assert out[:size].isnan().all()


@given(st.integers(1, 100), seeds)
def test_rounding_to_bfloat16(ops: Any, packer: Any, size: int, seed: int) -> None:
    x = random(1, size, seed=seed)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3.4e38, 1.00390625, 1.01171875])
    places = torch.randint(0, size, (8,), generator=torch.Generator().manual_seed(seed))
    x[0, places] = special
    x[0, places[0]] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN that rounds to -0.0
    rounded = Rounded(ops, BFLOAT16, x, pack(packer, BFLOAT16, [x], torch.arange(1), 32, None))
    assert torch.equal(rounded.floats().nan_to_num(99.5), x.bfloat16().double().nan_to_num(99.5))
    assert torch.equal(rounded.values[0, :size].isnan(), x[0].isnan())
    assert (rounded.values[0, size : up(size, 16)] == 0).all()


@pytest.mark.parametrize(("number", "zero"), [(INT8, 128), (INT4, 8), (INT6, 32), (NESTED, 8)])
@given(st.data(), st.integers(1, 48), st.sampled_from([1e-20, 1.0, 1e30]), seeds)
def test_rounding_to_int8(
    ops: Any, packer: Any, number: int, zero: int, data: st.DataObject, groups: int, scale: float, seed: int
) -> None:
    x = random(2, groups * 32, seed=seed) * scale
    width = data.draw(st.sampled_from(widths(groups * 32))) if number == NESTED else 1
    packed = pack(packer, number, [torch.ones(1, groups * 32)], torch.arange(1), 32, None, width)
    x[1, :32] = torch.arange(32) - 15.5  # ties, once divided
    x[0, :32] = 0
    rounded = Rounded(ops, number, x, packed, width)
    x_BSg = x.unflatten(1, (-1, 32 * rounded.width))
    greatest = x_BSg.abs().amax(2, keepdim=True)
    inverse = torch.tensor(127.0) / greatest  # 127 / greatest would multiply with a rounded reciprocal
    codes = (x_BSg * torch.where(greatest > 0, inverse, 0)).round()
    scales = groups // rounded.width
    assert torch.equal(rounded.scales[:, :scales], (greatest / 127).squeeze(2))
    assert torch.equal(rounded.values[:-1, : groups * 32].float(), codes.flatten(1))
    assert torch.equal(rounded.offsets, -zero * codes.flatten(1).unflatten(1, (-1, 32)).sum(2).int())
    if number == NESTED:
        assert torch.equal(rounded.byte_offsets[:, :scales], -128 * codes.sum(2).int())
    without = Rounded(ops, number, x, packed, width, with_offsets=False)
    assert not without.offsets.any()
    assert not without.byte_offsets.any()
    assert torch.equal(without.values, rounded.values)
    assert torch.equal(without.scales, rounded.scales)


@given(st.integers(1, 70), seeds)
def test_rotations(ops: Any, half: int, seed: int) -> None:
    head, angle = random(2 * half + 5, seed=seed), random(half, seed=seed + 1) * 100
    cosines, sines, rotated = angle.cos(), angle.sin(), head.clone()
    ops.rotate(rotated.data_ptr(), cosines.data_ptr(), sines.data_ptr(), half)
    first, second, c, s = (t.double() for t in (head[:half], head[half : 2 * half], cosines, sines))
    exact = torch.cat([first * c - second * s, second * c + first * s, head[2 * half :].double()])
    size = torch.cat([(first * c).abs() + (second * s).abs(), (second * c).abs() + (first * s).abs(), torch.zeros(5)])
    assert ((rotated - exact).abs() <= 3 * U * size).all()


class Cache:
    """Keys and values of one sequence and kv head, in blocks that lie in any order."""

    def __init__(self, ops: Any, number: int, keys_Td: Tensor, values_Td: Tensor, seed: int = 0) -> None:
        self.ops, self.number, self.head_size = ops, number, keys_Td.shape[1]
        self.shape = EXTENSION.CacheShape(number, 1, self.head_size)
        count = -(-len(keys_Td) // 16)
        self.blocks = np.random.default_rng(seed).permutation(count + 2)[:count].tolist()
        self.units = torch.zeros((count + 2), self.shape.unit_bytes, dtype=torch.uint8)
        for position, (key, value) in enumerate(zip(with_room(keys_Td), with_room(values_Td), strict=True)):
            if position < len(keys_Td):
                unit = self.units[self.blocks[position // 16]]
                ops.store_token(self.shape, unit.data_ptr(), position % 16, key.data_ptr(), value.data_ptr())

    def attend(
        self,
        queries_Rd: Tensor,
        positions: list[int],
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        *,
        in_segments: bool = False,
    ) -> Tensor:
        rows = with_room(queries_Rd.flip(0))  # so that they lie in another order than they are named
        count, stride = len(queries_Rd), rows.shape[1]
        places = [stride * (count - 1 - r) for r in range(count)]
        what = (self.shape, self.units.data_ptr(), self.blocks, rows.data_ptr(), places, positions)
        if not in_segments:
            self.ops.attend(*what, scale, softcap, window, -1, 0, 0)
        else:
            segments, floats = max(positions) // EXTENSION.SEGMENT + 1, EXTENSION.partial_floats(self.head_size)
            partials = torch.full((count, segments, floats), 3.0)
            for segment in reversed(range(segments)):
                place = partials[0, segment].data_ptr()
                self.ops.attend(*what, scale, softcap, window, segment, place, segments * floats)
            for place, parts in zip(places, partials, strict=True):
                out = rows.data_ptr() + place * rows.element_size()
                self.ops.join_segments(parts.data_ptr(), segments, self.head_size, out)
        assert (rows[:, self.head_size :] == 7).all()
        return rows[:-1, : self.head_size].flip(0)

    def rounded(self, x_Td: Tensor) -> Tensor:
        if self.number == FLOAT32:
            return x_Td.double()
        if self.number == BFLOAT16:
            return x_Td.bfloat16().double()
        scale = x_Td.abs().amax(1, keepdim=True) / 127
        return (x_Td * (1 / scale)).round().double() * scale.double()


@pytest.mark.parametrize("head_size", [8, 20, 64, 80, 128])
@CACHES
@settings(max_examples=20)
@given(data=st.data(), seed=seeds)
def test_attention(ops: Any, number: int, head_size: int, data: st.DataObject, seed: int) -> None:
    tokens = data.draw(
        st.one_of(st.sampled_from([1, 15, 16, 17, 63, 64, 65, 128, 255, 256, 257, 520]), st.integers(1, 300))
    )
    sharing = data.draw(st.sampled_from([1, 2, 3, 5, 10, 16]))
    spans = data.draw(st.integers(1, min(16 // sharing, tokens)))
    softcap = data.draw(st.sampled_from([0.0, 20.0]))
    window = data.draw(st.sampled_from([0, 1, 16, 33, 100, 1000]))
    keys, values = random(tokens, head_size, seed=seed), random(tokens, head_size, seed=seed + 1)
    queries = random(spans * sharing, head_size, seed=seed + 2) * 2
    positions = [tokens - spans + r // sharing for r in range(spans * sharing)]
    cache = Cache(ops, number, keys, values, seed)
    scale = head_size**-0.5
    result = cache.attend(queries, positions, scale, softcap, window)

    k, v, q = cache.rounded(keys), cache.rounded(values), cache.rounded(queries)
    scores = q @ k.T * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    place, now = torch.arange(tokens), torch.tensor(positions)[:, None]
    hidden = (place > now) | ((place <= now - window) if window else torch.zeros(1, dtype=torch.bool))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=1)
    size = weights @ v.abs()
    # A score is off by the rounding of its sum (and of tanh, 4e-7 of the cap), a weight by as much of itself; bfloat16
    # weights are off by 2^-8 of themselves besides.
    score_error = (head_size + 8) * U * (q.abs() @ k.abs().T * scale).amax() + 4e-7 * softcap
    error = (2 * score_error + (tokens + 16) * U + (2**-8 if number == BFLOAT16 else 0)) * size
    if number == INT8:  # weights, with the values' scales, are multiples of a segment's greatest by 1 / (127 · 256)
        scales = values.abs().amax(1, keepdim=True) / 127
        steps = (weights * scales.T).amax(1, keepdim=True) / (127 * 256)
        error = error + 0.51 * steps * (v / scales).abs().sum(0)
    assert ((result - weights @ v).abs() <= error).all()

    for r in range(len(queries)):  # alone as with others
        assert torch.equal(cache.attend(queries[r : r + 1], positions[r : r + 1], scale, softcap, window)[0], result[r])


@pytest.mark.parametrize("window", [0, 300])
@CACHES
def test_segments_joined_are_the_whole(ops: Any, number: int, window: int) -> None:
    tokens = 3 * EXTENSION.SEGMENT - 5
    cache = Cache(ops, number, random(tokens, 20, seed=0), random(tokens, 20, seed=1))
    queries, positions = random(3, 20, seed=2), [tokens - 1] * 3
    whole = cache.attend(queries, positions, 0.2, window=window)
    assert torch.equal(cache.attend(queries, positions, 0.2, window=window, in_segments=True), whole)


@CACHES
def test_blocks_before_the_window_are_not_read(ops: Any, number: int) -> None:
    cache = Cache(ops, number, random(150, 64, seed=0), random(150, 64, seed=1))
    queries = random(2, 64, seed=2)
    before = cache.attend(queries, [148, 149], 0.125, window=50)
    for block in range((148 + 1 - 50) // 16):
        cache.units[cache.blocks[block]] = 255  # NaN
    assert torch.equal(cache.attend(queries, [148, 149], 0.125, window=50), before)


@CACHES
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [0x7FC00000, 0x7FFFFFFF, 0x7F800000], ids=["nan", "nan of a GPU", "infinity"])
def test_attention_does_not_lose_what_is_not_finite(ops: Any, number: int, where: str, bad: int) -> None:
    parts = {"query": random(1, 20, seed=0), "key": random(40, 20, seed=1), "value": random(40, 20, seed=2)}
    parts[where].view(torch.int32)[-1, 7] = bad
    result = Cache(ops, number, parts["key"], parts["value"]).attend(parts["query"], [39], 0.2)
    assert not result[0, 7].isfinite()


@given(st.integers(1, 300), st.sampled_from([0.0, 30.0]), st.sampled_from([0.01, 3.0, 100.0]), seeds)
def test_summaries(ops: Any, size: int, softcap: float, scale: float, seed: int) -> None:
    logits = with_room(random(1, size, seed=seed) * scale)[0]
    exact = logits[:size].double()
    argmax, greatest, log_sum_exp = ops.summarize(logits.data_ptr(), size, softcap)
    if softcap:
        exact = softcap * (exact / softcap).tanh()
        assert ((logits[:size] - exact).abs() <= 4e-7 * softcap).all()
    assert (argmax, greatest) == (int(logits[:size].argmax()), float(logits[:size].max()))
    # exp is good to 2 units, the sum to size / 16 roundings, and the result is rounded once more
    error = (size / 16 + 10) * U + 2 * U * exact.abs().max() + 4e-7 * softcap
    assert abs(log_sum_exp - exact.logsumexp(0)) <= error
    logits[size // 2] = float("nan")
    assert np.isnan(ops.summarize(logits.data_ptr(), size, softcap)[2])


def test_the_first_of_equal_logits_is_the_greatest(ops: Any) -> None:
    logits = torch.zeros(64)
    logits[[19, 20, 40]] = 2.0
    assert ops.summarize(logits.data_ptr(), 50, 0.0)[0] == 19


def test_exp_is_good_to_three_units(ops: Any, packer: Any) -> None:
    """Where x is far below zero, silu(x) = x / (1 + e^-x) has the relative error of e^-x."""
    x_B1 = torch.linspace(-87, -17, 20_000)[:, None]
    packed = pack(packer, FLOAT32, [torch.ones(1, 1)], torch.arange(1), 32, None)
    result = multiply(ops, packed, Rounded(ops, FLOAT32, x_B1, packed), 1, mode=ACTIVATE)[:, 0].double()
    exact = F.silu(x_B1[:, 0].double())
    assert ((result / exact - 1).abs() <= 6 * U).all()
