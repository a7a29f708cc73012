"""The fast runner on a CPU: a model's weights as a plan that one C++ call a step carries out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tallow.engine.block_tables import CacheLayout
from tallow.engine.runner import Scores, Span, context_length
from tallow.kernels import QuantizedWeight, cpu, dequantize
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.blocks.norms import LayerNorm, RMSNorm
from tallow.models.blocks.positions import make_rotation
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, Layer

Number = Literal["float32", "bfloat16", "int8", "int4"]
CacheNumber = Literal["float32", "bfloat16", "int8"]
Integers = npt.NDArray[np.int32]

LANES = 16
GROUP_SIZE = 32
LONGEST_HEAD = 512
# as enum Number, enum Source::Kind and enum Activation have them
NUMBERS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.uint8: 4}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def is_available(model: Decoder) -> bool:
    """Whether the C++ decoder is installed, and the model one that it can run."""
    on_cpu = model.norm.weight.device.type == "cpu"
    return cpu.native() is not None and on_cpu and model.config.head_size <= LONGEST_HEAD


class NativeRunner:
    """Runs a copy of a model's weights in the layout in which they are multiplied.

    What it computes does not depend on what else is in the step: a sequence's logits are the same to the bit alone, in
    a batch, in chunks and after being computed again. Products of 4- and 8-bit weights are of integers: activations are
    rounded to 8 bits, 32 at a time with a scale of their own.

    Args:
        model: The model; it is not needed afterwards.
        weights: What plain weights are held in. Quantized ones stay as they are. `int4` leaves embedding and output
            matrix in 8 bits; a weight whose inputs have no groups of 32 is held in bfloat16 instead.
        cache: What keys and values are held in.
        threads: Threads that compute; None: as many as torch uses.
        instruction_set: One of `cpu.native().operation_sets()`; None: the best, or what TALLOW_CPU names.
    """

    def __init__(
        self,
        model: Decoder,
        weights: Number = "bfloat16",
        cache: CacheNumber = "bfloat16",
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        self.config = model.config
        self.layout = CacheLayout((None,), ((0, 0),) * model.config.num_layers, model.config.num_layers)
        self.weight_bytes = 0
        self.instruction_set = instruction_set or cpu.operation_set()
        self._native: Any = cpu.native()
        self._weights: Number = weights
        self._kept: list[Tensor] = []
        self._decoder = self._native.Decoder(
            _architecture(self._native, model.config, cache),
            self.instruction_set,
            threads or torch.get_num_threads(),
        )
        rotations = self._rotations() if model.config.positions == "rotary" else []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            self._decoder.add_layer(self._layer(layer, rotations[index] if rotations else None))
        embedding = self._pack([model.embed], is_table=True)
        head = embedding if model.lm_head is None else self._pack([model.lm_head], is_table=True)
        positions = model.embed_positions
        self._decoder.set_ends(
            embedding, head, self._norm(model.norm), self._floats(positions.weight) if positions is not None else 0
        )
        self._logits_RV = torch.empty(0, -(-model.config.vocab_size // (2 * LANES)) * 2 * LANES)
        self._summaries_R3 = torch.empty(0, 3, dtype=torch.int32)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def block_bytes(self) -> int:
        return self._decoder.block_bytes

    def allocate(self, num_blocks: int) -> None:
        self._decoder.allocate_cache(num_blocks)

    def copy_block(self, source: int, target: int) -> None:
        self._decoder.copy_block(source, target)

    def run(self, spans: Sequence[Span]) -> Scores:
        wanted = sum(span.wanted for span in spans)
        if wanted > len(self._logits_RV):
            self._logits_RV = torch.empty(wanted, self._logits_RV.shape[1])
            self._summaries_R3 = torch.empty(wanted, 3, dtype=torch.int32)
        self._decoder.step(
            np.concatenate([np.asarray(span.tokens, dtype=np.int32) for span in spans]),
            _integers(span.start for span in spans),
            _integers(len(span.tokens) for span in spans),
            _integers(span.wanted for span in spans),
            np.concatenate([np.frombuffer(table, dtype=np.int32) for span in spans for table in span.tables]),
            _integers(len(span.tables[0]) for span in spans),
            self._logits_RV.data_ptr(),
            self._logits_RV.shape[1],
            self._summaries_R3.data_ptr(),
        )
        summaries_R3 = self._summaries_R3[:wanted]
        floats_R3 = summaries_R3.view(torch.float32)
        return Scores(
            self._logits_RV[:wanted, : self.config.vocab_size],
            summaries_R3[:, 0].tolist(),
            floats_R3[:, 1].tolist(),
            floats_R3[:, 2].tolist(),
        )

    def _layer(self, layer: Layer, rotation: tuple[int, int] | None) -> object:
        attention, feed_forward = layer.attention, layer.feed_forward
        assert isinstance(attention, Attention)
        assert isinstance(feed_forward, FeedForward)
        plan = self._native.DecoderLayer()
        plan.attention_norm = self._norm(layer.attention_norm)
        plan.attention_post_norm = self._norm(layer.attention_post_norm)
        plan.feed_forward_norm = self._norm(layer.feed_forward_norm)
        plan.feed_forward_post_norm = self._norm(layer.feed_forward_post_norm)
        if attention.qk_norm != "none":
            plan.query_norm, plan.key_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
        plan.qkv = self._pack([attention.q_proj, attention.k_proj, attention.v_proj])
        plan.out = self._pack([attention.o_proj])
        if feed_forward.gate_proj is not None:
            plan.up = self._pack([feed_forward.gate_proj, feed_forward.up_proj], by_turns=True)
        else:
            plan.up = self._pack([feed_forward.up_proj])
        plan.down = self._pack([feed_forward.down_proj])
        if rotation is not None:
            plan.cosines, plan.sines = rotation
        plan.scale = attention.spec.scale
        plan.softcap = attention.spec.softcap or 0.0
        plan.window = attention.spec.window or 0
        return plan

    def _rotations(self) -> list[tuple[int, int]]:
        """Addresses of the cosines and sines of all positions, for each layer."""
        config = self.config
        positions = torch.arange(context_length(config))[None]
        made: dict[int, tuple[int, int]] = {}
        for rotary in filter(None, (config.rotary, config.local_rotary)):
            rotation = make_rotation(rotary, config.head_size, config.max_positions, positions)
            made[id(rotary)] = self._floats(rotation.cos_B1Tr), self._floats(rotation.sin_B1Tr)
        return [made[id(config.layer_rotary(index))] for index in range(config.num_layers)]

    def _pack(self, modules: Sequence[nn.Module], *, by_turns: bool = False, is_table: bool = False) -> object:
        """The weights of these modules as one, row after row, or (two of them) by turns of 16 rows."""
        weights = [_weight(module) for module in modules]
        number, group = self._held_in(weights, is_table)
        rows, inputs = [_shape(weight)[0] for weight in weights], _shape(weights[0])[1]
        sources, kept = [], []
        for weight, count in zip(weights, rows, strict=True):
            if isinstance(weight, QuantizedWeight) and number in ("int8", "int4"):
                parts = (weight.codes, weight.scales)
            else:
                plain = dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.detach()
                plain = plain if plain.dtype in SOURCES else plain.float()
                parts = (plain.contiguous(),)
            kept += parts
            addresses = [part.data_ptr() for part in parts] + [0]
            sources.append((SOURCES[parts[0].dtype], addresses[0], addresses[1], count))
        bias = 0
        biases = [getattr(module, "bias", None) for module in modules]
        if biases[0] is not None:
            kept.append(torch.cat([each.detach().float() for each in biases if each is not None]))
            bias = kept[-1].data_ptr()
        order = _by_turns(rows[0]) if by_turns else np.arange(sum(rows), dtype=np.int32)
        packed = self._decoder.pack(NUMBERS[number], sources, order, inputs, group, bias)
        self.weight_bytes += packed.bytes
        return packed

    def _held_in(self, weights: Sequence[Tensor | QuantizedWeight], is_table: bool) -> tuple[Number, int]:
        """What a weight is held in that is made of these, and its group size."""
        forms = {(weight.bits, weight.group_size) for weight in weights if isinstance(weight, QuantizedWeight)}
        if len(forms) == 1 and all(isinstance(weight, QuantizedWeight) for weight in weights):
            [(bits, group)] = forms
            return ("int8" if bits == 8 else "int4"), group
        if forms:  # not all alike: unpacked, so that none is rounded anew
            return "float32", GROUP_SIZE
        number = "int8" if self._weights == "int4" and is_table else self._weights
        has_groups = _shape(weights[0])[1] % GROUP_SIZE == 0
        return (number if has_groups or number not in ("int8", "int4") else "bfloat16"), GROUP_SIZE

    def _norm(self, norm: nn.Module) -> object:
        if isinstance(norm, RMSNorm):
            weight = norm.weight.detach().float()
            return self._native.Norm("rms", self._floats(1 + weight if norm.offset else weight), 0, norm.eps)
        if isinstance(norm, LayerNorm):
            bias = self._floats(norm.bias) if norm.bias is not None else 0
            return self._native.Norm("layer", self._floats(norm.weight), bias, norm.eps)
        return self._native.Norm("none", 0, 0, 0.0)

    def _floats(self, values: Tensor) -> int:
        """The address of these values as floats, with room for a whole vector behind them; kept as long as the plan."""
        self._kept.append(torch.cat([values.detach().float().flatten(), torch.zeros(LANES)]))
        return self._kept[-1].data_ptr()


def _architecture(native: Any, config: DecoderConfig, cache: CacheNumber) -> object:
    shape = native.Architecture()
    for name in ("hidden_size", "num_heads", "num_kv_heads", "head_size", "intermediate_size", "vocab_size"):
        setattr(shape, name, getattr(config, name))
    shape.rotated_size = config.rotary.rotated_size(config.head_size) if config.positions == "rotary" else 0
    shape.gated, shape.parallel_residual = config.gated, config.parallel_residual
    shape.norm_all_heads = config.qk_norm == "hidden"
    shape.activation = ACTIVATIONS[config.activation]
    shape.embedding_scale = math.sqrt(config.hidden_size) if config.embedding_scale else 1.0
    shape.logit_softcap = config.logit_softcap or 0.0
    shape.cache = NUMBERS[cache]
    return shape


def _weight(module: nn.Module) -> Tensor | QuantizedWeight:
    weight = module.weight
    assert isinstance(weight, Tensor | QuantizedWeight)
    return weight


def _shape(weight: Tensor | QuantizedWeight) -> tuple[int, int]:
    """Outputs and inputs."""
    if isinstance(weight, QuantizedWeight):
        return weight.out_features, weight.in_features
    return weight.shape[0], weight.shape[1]


def _by_turns(rows: int) -> Integers:
    """16 rows of the first half, then 16 of the second, and so on; −1 where there are not so many."""
    padded = -(-rows // LANES) * LANES
    first = np.full(padded, -1, dtype=np.int32)
    first[:rows] = np.arange(rows)
    second = np.where(first >= 0, first + rows, -1)
    return np.stack([first.reshape(-1, LANES), second.reshape(-1, LANES)], axis=1).flatten().astype(np.int32)


def _integers(values: Any) -> Integers:
    return np.fromiter(values, dtype=np.int32)
