"""The fast runner on a CPU: a packed model that one C++ call a step carries out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tallow.engine.block_tables import CacheLayout
from tallow.engine.packed_model import LANES, NUMBERS, CacheNumber, Integers, Layer, Norm, PackedModel, Part, Plan
from tallow.engine.runner import Floats, Scores, Span, context_length
from tallow.kernels import cpu
from tallow.kernels.sampling import Draw
from tallow.kernels.threads import num_threads
from tallow.models.config import DecoderConfig

if TYPE_CHECKING:
    from tallow.models.equalization import Factors
    from tallow.models.formats.adapters import Adapter


STREAMED_AT_ONCE = 3
"""Layers of a file that are in memory together: one that computes, the next, and the one before."""

MOST_READY_BYTES = 512 << 20
READY_SHARE = 4
"""So much of the cache, at most a fourth of it, gets its memory before it is used, while there is nothing to do."""

# as enum Activation has them
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


class NativeRunner:
    """Runs a packed model.

    What it computes does not depend on what else is in the step: a sequence's logits are the same to the bit alone, in
    a batch, in chunks and after being computed again. Products of 4- and 8-bit weights are of integers: activations are
    rounded to 8 bits, 32 at a time with a scale of their own; beside 4 bits up to 192, or 768 where their channels
    have been made alike.

    Args:
        model: The model.
        cache: What keys and values are held in; None: as the model's plan says.
        threads: Threads that compute; None: `num_threads()`.
        instruction_set: One of `cpu.native().operation_sets()`; None: the best, or what TALLOW_CPU names.
        resident_bytes: How much of a mapped model may stay in memory. Layers beyond that are read anew for each step.
    """

    def __init__(
        self,
        model: PackedModel,
        cache: CacheNumber | None = None,
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        resident_bytes: float = math.inf,
    ) -> None:
        plan, self._memory = model.plan, model.memory
        self._factors = plan.factors
        self.config = plan.config
        self.layout = CacheLayout.of(self.config, context_length(self.config))
        self.weight_bytes = 0
        self.streamed_bytes = 0
        self.instruction_set = instruction_set or cpu.operation_set()
        self._native: Any = cpu.native()
        self._handles = itertools.count(1)
        self._adapter_bytes: dict[int, int] = {}
        self._products: list[tuple[Part, Any]] = []
        cache = cache or plan.cache
        held = " and ".join(sorted({part.number.split("_")[-1] for layer in plan.layers for part in layer.parts}))
        self.precision = f"{held} weights, {cache} cache"
        self._decoder = self._native.Decoder(
            _architecture(self._native, self.config, self.layout, cache), self.instruction_set, threads or num_threads()
        )
        self._decoder.use_weights(self._memory.address, plan.weight_bytes)
        self._floats_begin = plan.weight_bytes
        if self._memory.descriptor is not None:
            self._read_ahead(plan, self._memory.descriptor, resident_bytes)
        for index, layer in enumerate(plan.layers):
            self._decoder.add_layer(self._layer(index, layer))
        embedding = self._weight(plan.embedding)
        head = embedding if plan.head is None else self._weight(plan.head)
        self._decoder.set_ends(embedding, head, self._norm(plan.norm), self._floats(plan.positions))
        self._logits_RV = np.empty((0, -(-self.config.vocab_size // (2 * LANES)) * 2 * LANES), np.float32)
        self._views: dict[int, Floats] = {}  # of the logits' first rows: to make one takes longer than to look it up

    @property
    def device(self) -> Literal["cpu"]:
        return "cpu"

    @property
    def factors(self) -> dict[str, Factors]:
        import torch

        from tallow.models.equalization import Factors

        floats = self._memory.bytes[self._floats_begin :].view(np.float32)
        found, vectors = {}, {}  # what layers share is one tensor

        def vector(place: int | None, size: int) -> torch.Tensor | None:
            if place is None:
                return None
            return vectors.setdefault(place, torch.tensor(floats[place : place + size]))

        for part, _ in self._products:
            for name, outputs in zip(part.names, part.rows, strict=True):
                if name in self._factors:
                    of_inputs, of_outputs = self._factors[name]
                    found[name] = Factors(vector(of_inputs, part.inputs), vector(of_outputs, outputs))
        return found

    @property
    def block_bytes(self) -> int:
        return self._decoder.block_bytes

    def allocate(self, num_blocks: int) -> None:
        ready = min(MOST_READY_BYTES, num_blocks * self.block_bytes // READY_SHARE)
        self._decoder.allocate_cache(num_blocks, ready)

    def copy_block(self, source: int, target: int) -> None:
        self._decoder.copy_block(source, target)

    def run(self, spans: Sequence[Span]) -> Scores:
        return self.run_ahead(spans, [], [], 1)[0]

    def run_ahead(
        self, spans: Sequence[Span], draws: Sequence[Draw], stop_ids: Sequence[Sequence[int]], passes: int
    ) -> list[Scores]:
        wanted = sum(span.wanted for span in spans)
        if wanted > len(self._logits_RV):
            self._logits_RV = np.empty((wanted, self._logits_RV.shape[1]), np.float32)
            self._views.clear()
        tuples = [(span.tokens, span.start, span.wanted, span.tables, span.adapter) for span in spans]
        address, stride = self._logits_RV.ctypes.data, self._logits_RV.shape[1]
        summaries = self._decoder.step(tuples, address, stride, draws, stop_ids, passes)
        if wanted not in self._views:
            self._views[wanted] = self._logits_RV[:wanted, : self.config.vocab_size]
        view, are_drawn = self._views[wanted], bool(draws)
        return [Scores(lambda: view, *summary, hidden=self._hidden, are_drawn=are_drawn) for summary in summaries]

    def _hidden(self, row: int) -> Floats:
        hidden_D = np.empty(self.config.hidden_size, np.float32)
        self._decoder.hidden(row, hidden_D.ctypes.data)
        return hidden_D

    def load_adapter(self, adapter: Adapter) -> int:
        handle, loaded, size = next(self._handles), self._native.Adapter(), 0
        for part, weight in self._products:
            if any(name in adapter for name in part.names):
                a_RI, b_OR = _stack_updates(part, adapter)
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

    def _layer(self, index: int, layer: Layer) -> object:
        made = self._native.DecoderLayer()
        for name, norm in layer.norms.items():
            setattr(made, name, self._norm(norm))
        weights = [self._weight(part) for part in layer.parts]
        self._products += zip(layer.parts, weights, strict=True)
        made.qkv, made.out, made.up, made.down = weights
        if layer.rotation is not None:
            made.cosines, made.sines = map(self._floats, layer.rotation)
        made.scale, made.softcap, made.window = layer.scale, layer.softcap, layer.window
        made.table, made.place = self.layout.places[index]
        return made

    def _weight(self, part: Part) -> object:
        """The next weight in memory."""
        weight = self._decoder.take_weight(
            NUMBERS[part.number], part.order, part.inputs, part.group, part.groups_per_scale, part.has_bias
        )
        self.weight_bytes += weight.bytes
        return weight

    def _norm(self, norm: Norm) -> object:
        return self._native.Norm(norm.kind, self._floats(norm.weight), self._floats(norm.bias), norm.eps)

    def _floats(self, place: int | None) -> int:
        """Their address; 0 if there are none."""
        return 0 if place is None else self._memory.address + self._floats_begin + 4 * place

    def _pack_floats(self, values_OI: Floats, order: Integers, adapter: object) -> Any:
        """A matrix of an adapter, in that adapter's memory."""
        values_OI = np.ascontiguousarray(values_OI)
        return self._decoder.pack_adapter(adapter, values_OI.ctypes.data, len(values_OI), order, values_OI.shape[1])

    def _read_ahead(self, plan: Plan, descriptor: int, resident_bytes: float) -> None:
        """Let as many layers stay in memory as may, from the first on."""
        sizes = [layer.num_bytes for layer in plan.layers]
        begins = list(itertools.accumulate(sizes, initial=0))
        if plan.num_bytes <= resident_bytes or len(sizes) <= STREAMED_AT_ONCE:
            return
        room = resident_bytes - (plan.num_bytes - begins[-1]) - STREAMED_AT_ONCE * max(sizes)
        stay = min(sum(end <= room for end in begins[1:]), len(sizes) - STREAMED_AT_ONCE)
        self.streamed_bytes = sum(sizes[stay:])
        self._decoder.read_ahead(self._memory.address, descriptor, begins, stay)


def _stack_updates(part: Part, adapter: Adapter) -> tuple[Floats, Floats]:
    """An adapter's updates of the modules as one: their A one below the other, their B (scaled) block-diagonal; fp32.

    Modules whose updates share an A share its rows.
    """
    updates = [adapter.get(name) for name in part.names]
    distinct = {id(update.a_RI): update.a_RI.float().numpy() for update in updates if update is not None}
    starts = dict(zip(distinct, itertools.accumulate(map(len, distinct.values()), initial=0), strict=False))
    a_RI = np.concatenate(list(distinct.values()))
    b_OR = np.zeros((sum(part.rows), len(a_RI)), np.float32)
    for update, rows_OR in zip(updates, np.split(b_OR, np.cumsum(part.rows)[:-1]), strict=True):
        if update is not None:
            start = starts[id(update.a_RI)]
            rows_OR[:, start : start + len(update.a_RI)] = update.scale * update.b_OR.float().numpy()
    return a_RI, b_OR


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
