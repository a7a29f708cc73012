"""The fast runner on a CPU: a model's weights as a plan that one C++ call a step carries out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tallow.engine.block_tables import CacheLayout
from tallow.engine.packed_file import HEADER_BYTES, PackedFile
from tallow.engine.packing import (
    GROUP_SIZE,
    LANES,
    NUMBERS,
    PLAINER,
    SOURCES,
    Integers,
    LayerParts,
    Number,
    Part,
    Plan,
    plan_packing,
    stack_updates,
    values,
)
from tallow.engine.runner import Scores, Span, context_length
from tallow.kernels import Draw, cpu, single_thread
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.norms import LayerNorm, RMSNorm
from tallow.models.blocks.positions import make_rotation
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import Adapter
from tallow.models.stored import LoadedModel, StoredModel

CacheNumber = Literal["float32", "bfloat16", "int8"]

LONGEST_HEAD = 512
STREAMED_AT_ONCE = 3
"""Layers of a file that are in memory together: one that computes, the next, and the one before."""

# as enum Activation has them
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def is_available(model: Decoder) -> bool:
    """Whether the C++ decoder is installed, and the model (it may be on the meta device) one that it can run."""
    on_cpu = model.norm.weight.device.type in ("cpu", "meta")
    return cpu.native() is not None and on_cpu and model.config.head_size <= LONGEST_HEAD


class Incompressible(Exception):
    """The weights of these modules do not fit the form that takes fewer bytes."""

    def __init__(self, modules: list[str]) -> None:
        super().__init__(", ".join(modules))
        self.modules = modules


class NativeRunner:
    """Runs a copy of a model's weights in the layout in which they are multiplied.

    What it computes does not depend on what else is in the step: a sequence's logits are the same to the bit alone, in
    a batch, in chunks and after being computed again. Products of 4- and 8-bit weights are of integers: activations are
    rounded to 8 bits, 32 at a time (up to 128 beside 4 bits) with a scale of their own.

    Args:
        model: The model; it is not needed afterwards. Of one that is stored, one weight is read at a time.
        weights: What plain weights are held in, as `plan_packing` says.
        cache: What keys and values are held in.
        threads: Threads that compute; None: as many as torch uses.
        instruction_set: One of `cpu.native().operation_sets()`; None: the best, or what TALLOW_CPU names.
        file: Where the packed weights are, or are to be put; None: in memory of their own.
        resident_bytes: How much of the file may stay in memory. Layers beyond that are read anew for each step.
        incompressible: As `plan_packing` says.

    Raises:
        Incompressible: There are such modules, and others than these.
    """

    def __init__(
        self,
        model: StoredModel | Decoder,
        weights: Number = "bfloat16",
        cache: CacheNumber = "bfloat16",
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        file: PackedFile | None = None,
        resident_bytes: float = math.inf,
        incompressible: Collection[str] = (),
    ) -> None:
        self._source = source = LoadedModel(model) if isinstance(model, Decoder) else model
        self.config = source.model.config
        self.layout = CacheLayout.of(self.config, context_length(self.config))
        self.weight_bytes = 0
        self.streamed_bytes = 0
        self.instruction_set = instruction_set or cpu.operation_set()
        self._native: Any = cpu.native()
        self._file = file
        self._kept: list[Tensor] = []
        self._handles = itertools.count(1)
        self._adapter_bytes: dict[int, int] = {}
        self._products: list[tuple[Part, Any]] = []
        self._decoder = self._native.Decoder(
            _architecture(self._native, self.config, self.layout, cache),
            self.instruction_set,
            threads or torch.get_num_threads(),
        )
        plan = plan_packing(source.model, weights, incompressible)
        numbers = {part.number.split("_")[-1] for layer in plan.layers for part in layer}
        held = " and ".join(sorted(numbers))
        self.precision = f"{held} weights, {cache} cache"
        if file is not None:
            self._decoder.pack_into(file.address + HEADER_BYTES, file.num_bytes, file.is_filled)
            self._read_ahead(plan, file, resident_bytes)
        with single_thread():
            try:
                self._add_weights(plan)
            except self._native.Incompressible:
                modules = [part.names[0] for part in plan if not self._fits(part)]
                raise Incompressible([*incompressible, *modules]) from None
        del self._source
        self._logits_RV = torch.empty(0, -(-self.config.vocab_size // (2 * LANES)) * 2 * LANES)
        self._views: dict[int, Tensor] = {}  # of the logits' first rows: to make one takes longer than to look it up

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _add_weights(self, plan: Plan) -> None:
        rotations = self._rotations() if self.config.positions == "rotary" else []
        for index, parts in enumerate(plan.layers):
            self._decoder.add_layer(self._layer(index, parts, rotations[index] if rotations else None))
        embedding = self._pack(plan.embedding)
        head = embedding if plan.head is None else self._pack(plan.head)
        positions = self._floats("embed_positions.weight") if self.config.positions == "learned" else 0
        self._decoder.set_ends(embedding, head, self._norm("norm"), positions)

    @property
    def block_bytes(self) -> int:
        return self._decoder.block_bytes

    def allocate(self, num_blocks: int) -> None:
        self._decoder.allocate_cache(num_blocks)

    def copy_block(self, source: int, target: int) -> None:
        self._decoder.copy_block(source, target)

    def run(self, spans: Sequence[Span]) -> Scores:
        return self.run_ahead(spans, [], [], 1)[0]

    def run_ahead(
        self, spans: Sequence[Span], draws: Sequence[Draw], stop_ids: Sequence[Sequence[int]], passes: int
    ) -> list[Scores]:
        wanted = sum(span.wanted for span in spans)
        if wanted > len(self._logits_RV):
            self._logits_RV = torch.empty(wanted, self._logits_RV.shape[1])
            self._views.clear()
        tuples = [(span.tokens, span.start, span.wanted, span.tables, span.adapter) for span in spans]
        address, stride = self._logits_RV.data_ptr(), self._logits_RV.shape[1]
        summaries = self._decoder.step(tuples, address, stride, draws, stop_ids, passes)
        if wanted not in self._views:
            self._views[wanted] = self._logits_RV[:wanted, : self.config.vocab_size]
        view, are_drawn = self._views[wanted], bool(draws)
        return [Scores(view, *summary, hidden=self._hidden, are_drawn=are_drawn) for summary in summaries]

    def _hidden(self, row: int) -> Tensor:
        hidden_D = torch.empty(self.config.hidden_size)
        self._decoder.hidden(row, hidden_D.data_ptr())
        return hidden_D

    def load_adapter(self, adapter: Adapter) -> int:
        handle, loaded, size = next(self._handles), self._native.Adapter(), 0
        for part, weight in self._products:
            if any(name in adapter for name in part.names):
                a_RI, b_OR = stack_updates(part, adapter)
                a = self._pack_floats(a_RI, np.arange(len(a_RI), dtype=np.int32), loaded)
                b = self._pack_floats(b_OR, part.order, loaded)
                loaded.change(weight, a, b)
                size += a.bytes + b.bytes
        self._decoder.add_adapter(handle, loaded)
        self._adapter_bytes[handle] = size
        self.weight_bytes += size
        return handle

    def unload_adapter(self, handle: int) -> None:
        self._decoder.remove_adapter(handle)
        self.weight_bytes -= self._adapter_bytes.pop(handle)

    def _layer(self, index: int, parts: LayerParts, rotation: tuple[int, int] | None) -> object:
        at = f"layers.{index}"
        attention = self._source.model.get_submodule(f"{at}.attention")
        assert isinstance(attention, Attention)
        plan = self._native.DecoderLayer()
        plan.attention_norm = self._norm(f"{at}.attention_norm")
        plan.attention_post_norm = self._norm(f"{at}.attention_post_norm")
        plan.feed_forward_norm = self._norm(f"{at}.feed_forward_norm")
        plan.feed_forward_post_norm = self._norm(f"{at}.feed_forward_post_norm")
        if attention.qk_norm != "none":
            plan.query_norm, plan.key_norm = self._norm(f"{at}.attention.q_norm"), self._norm(f"{at}.attention.k_norm")
        packed = [self._pack(part) for part in parts]
        self._products += zip(parts, packed, strict=True)
        plan.qkv, plan.out, plan.up, plan.down = packed
        if rotation is not None:
            plan.cosines, plan.sines = rotation
        plan.scale = attention.spec.scale
        plan.softcap = attention.spec.softcap or 0.0
        plan.window = attention.spec.window or 0
        plan.table, plan.place = self.layout.places[index]
        return plan

    def _rotations(self) -> list[tuple[int, int]]:
        """Addresses of the cosines and sines of all positions, for each layer."""
        config = self.config
        positions = torch.arange(context_length(config))[None]
        made: dict[int, tuple[int, int]] = {}
        for rotary in filter(None, (config.rotary, config.local_rotary)):
            rotation = make_rotation(rotary, config.head_size, config.max_positions, positions)
            made[id(rotary)] = self._keep(rotation.cos_B1Tr), self._keep(rotation.sin_B1Tr)
        return [made[id(config.layer_rotary(index))] for index in range(config.num_layers)]

    def _pack(self, part: Part) -> object:
        number = NUMBERS[part.number]
        if self._file is not None and self._file.is_filled:
            packed = self._decoder.pack(number, [], part.order, part.inputs, part.group, int(part.has_bias))
        else:
            sources, bias, _kept = part.sources(self._source)
            address = bias.data_ptr() if bias is not None else 0
            packed = self._decoder.pack(number, sources, part.order, part.inputs, part.group, address)
        self.weight_bytes += packed.bytes
        return packed

    def _fits(self, part: Part) -> bool:
        """Whether a weight fits its form, which is tried in memory that is not kept."""
        if part.number not in PLAINER:
            return True
        sources, _, _kept = part.sources(self._source)
        try:
            self._decoder.pack(
                NUMBERS[part.number], sources, part.order, part.inputs, part.group, 0, self._native.Adapter()
            )
        except self._native.Incompressible:
            return False
        return True

    def _pack_floats(self, values_OI: Tensor, order: Integers, adapter: object) -> Any:
        """A matrix of an adapter, in that adapter's memory."""
        values_OI = values_OI.contiguous()
        source = (SOURCES[torch.float32], values_OI.data_ptr(), 0, len(values_OI))
        inputs = values_OI.shape[1]
        return self._decoder.pack(NUMBERS["float32"], [source], order, inputs, GROUP_SIZE, 0, adapter)

    def _read_ahead(self, plan: Plan, file: PackedFile, resident_bytes: float) -> None:
        """Let as many layers stay in memory as may, from the first on."""
        sizes = [layer.num_bytes for layer in plan.layers]
        begins = list(itertools.accumulate(sizes, initial=HEADER_BYTES))
        if plan.num_bytes <= resident_bytes or len(sizes) <= STREAMED_AT_ONCE:
            return
        room = resident_bytes - plan.end_bytes - STREAMED_AT_ONCE * max(sizes)
        stay = sum(end - HEADER_BYTES <= room for end in begins[1:])
        stay = min(stay, len(sizes) - STREAMED_AT_ONCE)
        self.streamed_bytes = sum(sizes[stay:])
        self._decoder.read_ahead(file.address, file.descriptor, begins, stay)

    def _norm(self, name: str) -> object:
        norm = self._source.model.get_submodule(name)
        if isinstance(norm, RMSNorm):
            weight = values(self._source.read(f"{name}.weight"))
            return self._native.Norm("rms", self._keep(1 + weight if norm.offset else weight), 0, norm.eps)
        if isinstance(norm, LayerNorm):
            bias = self._floats(f"{name}.bias") if norm.bias is not None else 0
            return self._native.Norm("layer", self._floats(f"{name}.weight"), bias, norm.eps)
        return self._native.Norm("none", 0, 0, 0.0)

    def _floats(self, name: str) -> int:
        return self._keep(values(self._source.read(name)))

    def _keep(self, floats: Tensor) -> int:
        """The address of these values, with room for a whole vector behind them; kept as long as the plan."""
        self._kept.append(torch.cat([floats.float().flatten(), torch.zeros(LANES)]))
        return self._kept[-1].data_ptr()


def _architecture(native: Any, config: DecoderConfig, layout: CacheLayout, cache: CacheNumber) -> object:
    shape = native.Architecture()
    for name in ("hidden_size", "num_heads", "num_kv_heads", "head_size", "intermediate_size", "vocab_size"):
        setattr(shape, name, getattr(config, name))
    shape.rotated_size = config.rotary.rotated_size(config.head_size) if config.positions == "rotary" else 0
    shape.gated, shape.parallel_residual = config.gated, config.parallel_residual
    shape.norm_all_heads = config.qk_norm == "hidden"
    shape.activation = ACTIVATIONS[config.activation]
    shape.embedding_scale = math.sqrt(config.hidden_size) if config.embedding_scale else 1.0
    shape.logit_softcap = config.logit_softcap or 0.0
    shape.cache, shape.block_layers = NUMBERS[cache], layout.depth
    return shape
