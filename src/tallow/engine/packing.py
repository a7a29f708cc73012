"""How a model's weights are brought together for the C++ decoder: which of them make one, and what it is held in."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallow.kernels import BlockWeight, QuantizedWeight, cpu, dequantize, unpack_blocks
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import Adapter
from tallow.models.quantization import TABLE_BITS
from tallow.models.stored import StoredModel

Number = Literal["float32", "bfloat16", "int8", "int4", "int6", "compressed_bfloat16", "nested_int4"]
INTEGERS: dict[int, Number] = {4: "nested_int4", 6: "int6", 8: "int8"}
PLAINER: dict[Number, Number] = {"compressed_bfloat16": "bfloat16", "nested_int4": "int4"}
"""What holds weights that do not fit a form."""
HAS_GROUPS: frozenset[Number] = frozenset({*INTEGERS.values(), "int4"})
TABLES: dict[Number, Number] = {INTEGERS[bits]: INTEGERS[table_bits] for bits, table_bits in TABLE_BITS.items()}
Integers = npt.NDArray[np.int32]
Source = tuple[int, int, int, int]  # kind, addresses of values and scales, rows

LANES = 16
COMPRESSED_AT_ONCE = 4
"""Inputs."""
GROUP_SIZE = 32
# as enum Number and enum Source::Kind have them
NUMBERS: dict[Number, int] = {
    **{"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "int6": 4},
    **{"compressed_bfloat16": 5, "nested_int4": 6},
}
SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CODES = {8: 3, 4: 4, 6: 5}
BLOCKS = 16  # and GGUF's number of the type of blocks


@dataclass(frozen=True)
class Part:
    """Linear layers or a table that are packed as one weight.

    Args:
        names: Of the modules.
        rows: Outputs of each.
        inputs: Of all of them.
        number: What the weight is held in; integers have groups of `group` inputs.
        by_turns: 16 rows of the first, then 16 of the second, and so on; else the rows follow each other.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    inputs: int
    number: Number
    group: int
    has_bias: bool
    by_turns: bool = False

    @property
    def order(self) -> Integers:
        """For each row of the weight the row of the modules, counted through all of them; −1 for zeros."""
        return _by_turns(self.rows[0]) if self.by_turns else np.arange(sum(self.rows), dtype=np.int32)

    @property
    def num_bytes(self) -> int:
        """Of the packed weight, with what lies between it and the next."""
        extension = cpu.native()
        assert extension is not None
        outputs = len(self.order)
        return extension.packed_bytes(NUMBERS[self.number], outputs, self.inputs, self.group, self.has_bias)

    def sources(self, model: StoredModel) -> tuple[list[Source], Tensor | None, list[Tensor]]:
        """What C++ packs the weight from: its sources, the biases, and the tensors to be kept alive until then."""
        sources: list[Source] = []
        kept: list[Tensor] = []
        for name, count in zip(self.names, self.rows, strict=True):
            kind, tensors = self._source(model, name)
            addresses = [tensor.data_ptr() for tensor in tensors] + [0]
            sources.append((kind, addresses[0], addresses[1], count))
            kept += tensors
        biases = [model.read(f"{name}.bias") for name in self.names] if self.has_bias else []
        bias = torch.cat([values(bias).flatten() for bias in biases]) if biases else None
        return sources, bias, kept

    def _source(self, model: StoredModel, name: str) -> tuple[int, list[Tensor]]:
        module_weight = model.model.get_submodule(name).weight
        if isinstance(module_weight, QuantizedWeight):
            codes, scales = model.read(f"{name}.codes"), model.read(f"{name}.scales")
            assert isinstance(codes, Tensor)
            assert isinstance(scales, Tensor)
            if self.number in HAS_GROUPS:
                return CODES[module_weight.bits], [codes.contiguous(), scales.contiguous()]
            return 0, [dequantize(QuantizedWeight(codes, scales, module_weight.bits, module_weight.group_size))]
        weight = model.read(f"{name}.weight")
        if isinstance(weight, BlockWeight):
            return BLOCKS + weight.kind, [weight.blocks.contiguous()]
        weight = weight if weight.dtype in SOURCES else weight.float()
        return SOURCES[weight.dtype], [weight.contiguous()]


@dataclass(frozen=True)
class LayerParts:
    """The weights of a layer."""

    qkv: Part
    out: Part
    up: Part
    down: Part

    def __iter__(self) -> Iterator[Part]:
        yield from (self.qkv, self.out, self.up, self.down)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self)


@dataclass(frozen=True)
class Plan:
    """All weights of a model, in the order in which they are packed.

    Args:
        head: The output matrix; None where it is the embedding.
    """

    layers: list[LayerParts]
    embedding: Part
    head: Part | None

    def __iter__(self) -> Iterator[Part]:
        yield from itertools.chain(*self.layers)
        yield from (self.embedding,) if self.head is None else (self.embedding, self.head)

    @property
    def end_bytes(self) -> int:
        """Of what is in use in no layer."""
        return self.embedding.num_bytes + (self.head.num_bytes if self.head is not None else 0)

    @property
    def num_bytes(self) -> int:
        """Of all packed weights."""
        return sum(part.num_bytes for part in self)


def plan_packing(model: Decoder, weights: Number, incompressible: Collection[str] = ()) -> Plan:
    """What the weights of a model are held in; the model may be on the meta device.

    Args:
        weights: For plain weights; quantized ones stay as they are. Beside integers the embedding and the output matrix
            have the bits that `TABLE_BITS` says; a weight whose inputs have no groups of 32 is held in bfloat16.
        incompressible: Names of modules that do not fit their form: they are held as `PLAINER` says.
    """

    def part(*names: str, by_turns: bool = False, is_table: bool = False) -> Part:
        modules = [model.get_submodule(name) for name in names]
        held = [_weight(module.weight) for module in modules]
        number, group = _held_in(held, weights, is_table)
        inputs = _shape(held[0])[1]
        if names[0] in incompressible or (number == "compressed_bfloat16" and inputs % COMPRESSED_AT_ONCE):
            number = PLAINER.get(number, number)
        has_bias = getattr(modules[0], "bias", None) is not None
        return Part(names, tuple(_shape(each)[0] for each in held), inputs, number, group, has_bias, by_turns)

    def layer(index: int) -> LayerParts:
        at = f"layers.{index}"
        feed_forward = model.get_submodule(f"{at}.feed_forward")
        assert isinstance(feed_forward, FeedForward)
        gated = feed_forward.gate_proj is not None
        up = (
            (f"{at}.feed_forward.gate_proj", f"{at}.feed_forward.up_proj") if gated else (f"{at}.feed_forward.up_proj",)
        )
        return LayerParts(
            qkv=part(*(f"{at}.attention.{each}_proj" for each in "qkv")),
            out=part(f"{at}.attention.o_proj"),
            up=part(*up, by_turns=gated),
            down=part(f"{at}.feed_forward.down_proj"),
        )

    return Plan(
        [layer(index) for index in range(model.config.num_layers)],
        part("embed", is_table=True),
        part("lm_head", is_table=True) if model.lm_head is not None else None,
    )


def stack_updates(part: Part, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """An adapter's updates of the modules as one: their A one below the other, their B (scaled) block-diagonal; fp32.

    Modules whose updates share an A share its rows.
    """
    updates = [adapter.get(name) for name in part.names]
    distinct = {id(update.a_RI): update.a_RI for update in updates if update is not None}
    starts = dict(zip(distinct, itertools.accumulate(map(len, distinct.values()), initial=0), strict=False))
    a_RI = torch.cat([a.float() for a in distinct.values()])
    b_OR = torch.zeros(sum(part.rows), len(a_RI))
    for update, rows_OR in zip(updates, b_OR.split(list(part.rows)), strict=True):
        if update is not None:
            start = starts[id(update.a_RI)]
            rows_OR[:, start : start + len(update.a_RI)] = update.scale * update.b_OR.float()
    return a_RI, b_OR


def values(tensor: Tensor | BlockWeight) -> Tensor:
    """Plain values in float32."""
    return (unpack_blocks(tensor) if isinstance(tensor, BlockWeight) else tensor.detach()).float()


def _weight(weight: object) -> Tensor | QuantizedWeight:
    assert isinstance(weight, Tensor | QuantizedWeight)
    return weight


def _shape(weight: Tensor | QuantizedWeight) -> tuple[int, int]:
    """Outputs and inputs."""
    if isinstance(weight, QuantizedWeight):
        return weight.out_features, weight.in_features
    return weight.shape[0], weight.shape[1]


def _held_in(weights: Sequence[Tensor | QuantizedWeight], plain: Number, is_table: bool) -> tuple[Number, int]:
    """What a weight is held in that is made of these, and its group size."""
    forms = {(weight.bits, weight.group_size) for weight in weights if isinstance(weight, QuantizedWeight)}
    if len(forms) == 1 and all(isinstance(weight, QuantizedWeight) for weight in weights):
        [(bits, group)] = forms
        return INTEGERS[bits], group
    if forms:  # not all alike: unpacked, so that none is rounded anew
        return "float32", GROUP_SIZE
    number = TABLES.get(plain, plain) if is_table else plain
    has_groups = _shape(weights[0])[1] % GROUP_SIZE == 0
    return (number if has_groups or number not in HAS_GROUPS else "bfloat16"), GROUP_SIZE


def _by_turns(rows: int) -> Integers:
    """16 rows of the first half, then 16 of the second, and so on; −1 where there are not so many."""
    padded = -(-rows // LANES) * LANES
    first = np.full(padded, -1, dtype=np.int32)
    first[:rows] = np.arange(rows)
    second = np.where(first >= 0, first + rows, -1)
    return np.stack([first.reshape(-1, LANES), second.reshape(-1, LANES)], axis=1).flatten().astype(np.int32)
