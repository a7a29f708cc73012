"""How a stored model becomes one that the C++ decoder runs: which weights are brought together, and what holds them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tallow.engine.packed_model import GROUP_SIZE, LANES, NUMBERS, Layer, Memory, Norm, Number, PackedModel, Part, Plan
from tallow.engine.runner import context_length
from tallow.kernels import cpu
from tallow.kernels.blocks import BlockWeight, unpack_blocks
from tallow.kernels.quantized import QuantizedWeight, dequantize
from tallow.kernels.threads import num_threads, single_thread
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.blocks.norms import LayerNorm, RMSNorm
from tallow.models.blocks.positions import make_rotation
from tallow.models.decoder import Decoder
from tallow.models.equalization import EqualizedModel
from tallow.models.quantization import TABLE_BITS
from tallow.models.stored import LoadedModel, StoredModel

LONGEST_HEAD = 512
INTEGERS: dict[int, Number] = {4: "nested_int4", 6: "int6", 8: "int8"}
PLAINER: dict[Number, Number] = {"compressed_bfloat16": "bfloat16", "nested_int4": "int4"}
"""What holds weights that do not fit a form."""
HAS_GROUPS: frozenset[Number] = frozenset({*INTEGERS.values(), "int4"})
TABLES: dict[Number, Number] = {INTEGERS[bits]: INTEGERS[table_bits] for bits, table_bits in TABLE_BITS.items()}
COMPRESSED_AT_ONCE = 4
"""Inputs."""
MOST_GROUPS_PER_SCALE = {False: 6, True: 24}
"""Beside 4 bits, by whether channels have been made alike: what they lose is in docs/decisions.md."""
# as enum Source::Kind has them
SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CODES = {8: 3, 4: 4, 6: 5}
BLOCKS = 16  # and GGUF's number of the type of blocks

Source = tuple[int, int, int, int]  # kind, addresses of values and scales, rows
Allocate = Callable[[Plan], AbstractContextManager[Memory]]


def can_pack(model: Decoder) -> bool:
    """Whether the C++ decoder is installed, and the model (it may be on the meta device) one that it can run."""
    on_cpu = model.norm.weight.device.type in ("cpu", "meta")
    fits = model.config.head_size <= LONGEST_HEAD and not model.config.num_experts
    return cpu.native() is not None and on_cpu and fits


def pack(
    model: StoredModel | Decoder,
    weights: Number = "bfloat16",
    *,
    in_fp32: bool = False,
    allocate: Allocate = lambda plan: nullcontext(Memory.of_its_own(plan.num_bytes)),
) -> PackedModel:
    """Pack a model; of one that is stored, one weight is read at a time.

    Args:
        model: The model; it is not needed afterwards.
        weights: For plain weights; quantized ones stay as they are. Beside integers the embedding and the output matrix
            have the bits that `TABLE_BITS` says; a weight whose inputs have no groups of 32 is held in bfloat16. What
            does not fit its form is held as `PLAINER` says.
        in_fp32: As `Plan` has it.
        allocate: Gives memory, which is filled within the block.
    """
    source = LoadedModel(model) if isinstance(model, Decoder) else model
    incompressible: list[str] = []
    while True:
        packing = _Packing(source, weights, in_fp32, incompressible)
        try:
            with allocate(packing.plan) as memory:
                packing.fill(memory)
                return PackedModel(packing.plan, memory)
        except _Incompressible as error:
            incompressible += error.modules


class _Incompressible(Exception):
    """The weights of these modules do not fit the form that takes fewer bytes."""

    def __init__(self, modules: list[str]) -> None:
        super().__init__(", ".join(modules))
        self.modules = modules


class _Packing:
    """A plan, and the floats that it has places for."""

    def __init__(self, source: StoredModel, weights: Number, in_fp32: bool, incompressible: Collection[str]) -> None:
        self._source, self._model = source, source.model
        self._weights: Number = weights
        self._incompressible = incompressible
        self._floats: list[Tensor] = []
        self._num_floats = 0
        model, config = source.model, source.model.config
        rotations = self._rotations() if config.positions == "rotary" else [None] * config.num_layers
        with single_thread():
            factors = self._keep_factors()
            self.plan = Plan(
                config,
                [self._layer(index, rotation) for index, rotation in enumerate(rotations)],
                self._part("embed", is_table=True),
                self._part("lm_head", is_table=True) if model.lm_head is not None else None,
                self._norm("norm"),
                self._keep(source.read("embed_positions.weight")) if config.positions == "learned" else None,
                self._num_floats,
                in_fp32,
                factors,
            )

    def fill(self, memory: Memory) -> None:
        """Put weights and floats into memory."""
        native: Any = cpu.native()
        packer, too_wide = native.Packer(memory.address, self.plan.weight_bytes, num_threads()), []
        with single_thread():
            for part in self.plan.parts:
                sources, bias, _kept = self._sources(part)
                address = bias.data_ptr() if bias is not None else 0
                try:
                    number, scales = NUMBERS[part.number], part.groups_per_scale
                    packer.pack(number, sources, part.order, part.inputs, part.group, scales, address)
                except native.Incompressible:
                    too_wide.append(part.names[0])
        if too_wide:
            raise _Incompressible(too_wide)
        floats = memory.bytes[self.plan.weight_bytes :].view(np.float32)
        place = 0
        for values_N in self._floats:
            floats[place : place + len(values_N)] = values_N.numpy()
            place += len(values_N)

    def _layer(self, index: int, rotation: tuple[int, int] | None) -> Layer:
        at = f"layers.{index}"
        attention, feed_forward = (self._model.get_submodule(f"{at}.{name}") for name in ("attention", "feed_forward"))
        assert isinstance(attention, Attention)
        assert isinstance(feed_forward, FeedForward)
        gated = feed_forward.gate_proj is not None
        names = ("attention_norm", "attention_post_norm", "feed_forward_norm", "feed_forward_post_norm")
        norms = {name: self._norm(f"{at}.{name}") for name in names}
        if attention.qk_norm != "none":
            norms["query_norm"], norms["key_norm"] = (self._norm(f"{at}.attention.{each}_norm") for each in "qk")
        return Layer(
            qkv=self._part(*(f"{at}.attention.{each}_proj" for each in "qkv")),
            out=self._part(f"{at}.attention.o_proj"),
            up=self._part(*(f"{at}.feed_forward.{each}_proj" for each in ("gate", "up")[not gated :]), by_turns=gated),
            down=self._part(f"{at}.feed_forward.down_proj"),
            norms=norms,
            rotation=rotation,
            scale=attention.spec.scale,
            softcap=attention.spec.softcap or 0.0,
            window=attention.spec.window or 0,
        )

    def _part(self, *names: str, by_turns: bool = False, is_table: bool = False) -> Part:
        modules = [self._model.get_submodule(name) for name in names]
        held = [_weight(module.weight) for module in modules]
        number, group = _held_in(held, self._weights, is_table)
        inputs = _shape(held[0])[1]
        if names[0] in self._incompressible or (number == "compressed_bfloat16" and inputs % COMPRESSED_AT_ONCE):
            number = PLAINER.get(number, number)
        has_bias = getattr(modules[0], "bias", None) is not None
        rows = tuple(_shape(each)[0] for each in held)
        scales = _groups_per_scale(number, inputs, isinstance(self._source, EqualizedModel))
        return Part(names, rows, inputs, number, group, has_bias, by_turns, scales)

    def _keep_factors(self) -> dict[str, tuple[int | None, int | None]]:
        if not isinstance(self._source, EqualizedModel):
            return {}
        places: dict[int, int] = {}  # of those that layers share

        def keep(factors_N: Tensor | None) -> int | None:
            if factors_N is not None and id(factors_N) not in places:
                places[id(factors_N)] = self._keep(factors_N)
            return None if factors_N is None else places[id(factors_N)]

        return {name: (keep(each.inputs_I), keep(each.outputs_O)) for name, each in self._source.factors.items()}

    def _sources(self, part: Part) -> tuple[list[Source], Tensor | None, list[Tensor]]:
        """What C++ packs a weight from: its sources, the biases, and the tensors to be kept alive until then."""
        sources: list[Source] = []
        kept: list[Tensor] = []
        for name, count in zip(part.names, part.rows, strict=True):
            kind, tensors = self._read(name, part.number)
            addresses = [tensor.data_ptr() for tensor in tensors] + [0]
            sources.append((kind, addresses[0], addresses[1], count))
            kept += tensors
        biases = [_values(self._source.read(f"{name}.bias")) for name in part.names] if part.has_bias else []
        return sources, torch.cat([bias.flatten() for bias in biases]) if biases else None, kept

    def _read(self, name: str, number: Number) -> tuple[int, list[Tensor]]:
        """A module's weight: of which kind, and its tensors."""
        module_weight = self._model.get_submodule(name).weight
        if isinstance(module_weight, QuantizedWeight):
            codes, scales = self._source.read(f"{name}.codes"), self._source.read(f"{name}.scales")
            assert isinstance(codes, Tensor)
            assert isinstance(scales, Tensor)
            if number in HAS_GROUPS:
                return CODES[module_weight.bits], [codes.contiguous(), scales.contiguous()]
            return 0, [dequantize(QuantizedWeight(codes, scales, module_weight.bits, module_weight.group_size))]
        weight = self._source.read(f"{name}.weight")
        if isinstance(weight, BlockWeight):
            return BLOCKS + weight.kind, [weight.blocks.contiguous()]
        weight = weight if weight.dtype in SOURCES else weight.float()
        return SOURCES[weight.dtype], [weight.contiguous()]

    def _rotations(self) -> list[tuple[int, int]]:
        """Places of the cosines and sines of all positions, for each layer."""
        config = self._model.config
        positions = torch.arange(context_length(config))[None]
        made: dict[int, tuple[int, int]] = {}
        for rotary in filter(None, (config.rotary, config.local_rotary)):
            rotation = make_rotation(rotary, config.head_size, config.max_positions, positions)
            made[id(rotary)] = self._keep(rotation.cos_B1Tr), self._keep(rotation.sin_B1Tr)
        return [made[id(config.layer_rotary(index))] for index in range(config.num_layers)]

    def _norm(self, name: str) -> Norm:
        norm = self._model.get_submodule(name)
        if isinstance(norm, RMSNorm):
            weight = _values(self._source.read(f"{name}.weight"))
            return Norm("rms", norm.eps, self._keep(1 + weight if norm.offset else weight))
        if isinstance(norm, LayerNorm):
            weight, bias = (
                self._keep(self._source.read(f"{name}.{each}")) if getattr(norm, each) is not None else None
                for each in ("weight", "bias")
            )
            return Norm("layer", norm.eps, weight, bias)
        return Norm("none")

    def _keep(self, values: Tensor | BlockWeight) -> int:
        """The place of these values among the floats, with room for a whole vector behind them."""
        values_N = _values(values).flatten()
        self._floats.append(torch.cat([values_N, torch.zeros(LANES + -len(values_N) % LANES)]))
        place, self._num_floats = self._num_floats, self._num_floats + len(self._floats[-1])
        return place


def _groups_per_scale(number: Number, inputs: int, are_alike: bool) -> int:
    """How many groups of activations share a scale beside 4 bits: as many as divide the row, up to a number.

    An even number where one does, as two groups are what the widest instructions take at once.
    """
    if number != "nested_int4":
        return 1
    groups, most = inputs // GROUP_SIZE, MOST_GROUPS_PER_SCALE[are_alike]
    return max((n for n in range(1, most + 1) if groups % n == 0), key=lambda n: (n % 2 == 0, n))


def _values(tensor: Tensor | BlockWeight) -> Tensor:
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
