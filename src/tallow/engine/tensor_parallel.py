"""A model spread over several processes: each computes with a share of its heads and of its feed-forwards.

As in Megatron-LM (arXiv 1909.08053, section 3) the projections to queries, keys, values, gate and inner vector are cut
by their outputs, those back to the hidden vector by their inputs, so that each attention and each feed-forward ends in
one sum over all processes. The cache is cut with the heads.

The token table and the output matrix are held whole, for they would have to be gathered: the leader alone makes
logits and chooses among them. The model's modules know nothing of it: they get narrower weights, and hooks that sum.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

import torch
from torch import Tensor, nn

from tallow.engine.process_group import PATIENCE, ProcessGroup
from tallow.engine.runner import Scores, Span
from tallow.engine.torch_runner import TorchRunner
from tallow.engine.uninterrupted import uninterrupted
from tallow.errors import DataError, UsageError
from tallow.kernels.quantized import QuantizedWeight
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.blocks.linear import Linear
from tallow.models.blocks.quantized import QuantizedLinear
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import Adapter, LowRank

DIMENSIONS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 0, "up_proj": 0, "o_proj": 1, "down_proj": 1}
"""By which the weights of linear layers are cut: outputs or inputs."""


class Command(IntEnum):
    """What the leader tells its followers to do."""

    ALLOCATE = 0
    COPY_BLOCK = 1
    RUN = 2
    LOAD_ADAPTER = 3
    UNLOAD_ADAPTER = 4


class TensorParallelRunner(TorchRunner):
    """This process's share of a model. The leader's is the runner of an engine, a follower's does as it does.

    Args:
        model: The share, as `shard` leaves it, in the precision in which it computes.
        config: Of the whole model.
        group: The processes.

    Raises:
        DataError: The processes have loaded different models.
        ProcessLost: One of them has ended.
    """

    def __init__(self, model: Decoder, config: DecoderConfig, group: ProcessGroup) -> None:
        super().__init__(model)
        self.config = config
        self._group = group
        with group.in_step():  # in which all have their weights
            self.weight_bytes = int(group.sum_(torch.tensor([self.weight_bytes]), PATIENCE))
            digest = hashlib.sha256(f"{config.model_dump_json()} {self.precision}".encode()).digest()
            digests = group.gather(torch.tensor(list(digest)))
        if any(not torch.equal(digests[0], other) for other in digests):
            raise DataError("the processes have loaded different models", "give all of them the same files and options")

    def allocate(self, num_blocks: int) -> None:
        with self._together(Command.ALLOCATE, num_blocks):
            super().allocate(num_blocks)

    def copy_block(self, source: int, target: int) -> None:
        with self._together(Command.COPY_BLOCK, source, target):
            super().copy_block(source, target)

    def run(self, spans: Sequence[Span]) -> Scores:
        with self._together(Command.RUN, *_numbers(spans)):
            return super().run(spans)

    def load_adapter(self, adapter: Adapter) -> int:
        with self._together(Command.LOAD_ADAPTER, *_shapes(adapter)):
            return self._load_adapter(adapter)

    def unload_adapter(self, handle: int) -> None:
        with self._together(Command.UNLOAD_ADAPTER, handle):
            super().unload_adapter(handle)

    def follow(self) -> None:
        """Do what the leader tells, until it has ended.

        Raises:
            ProcessLost: It has ended.
        """
        while True:
            with self._group.in_step():
                command, *numbers = self._group.hear()
                match Command(command):
                    case Command.ALLOCATE:
                        super().allocate(*numbers)
                    case Command.COPY_BLOCK:
                        super().copy_block(*numbers)
                    case Command.RUN:
                        super().run(list(_spans(numbers, len(self.layout.windows))))
                    case Command.LOAD_ADAPTER:
                        self._load_adapter(_empty_adapter(numbers))
                    case Command.UNLOAD_ADAPTER:
                        super().unload_adapter(*numbers)

    def _load_adapter(self, adapter: Adapter) -> int:
        """Load this process's share of what the leader has."""
        shares = {}
        for name, update in adapter.items():
            a_RI, b_OR = (
                self._group.copy_from_leader(part.float().contiguous()) for part in (update.a_RI, update.b_OR)
            )
            [scale] = self._group.copy_from_leader(torch.tensor([update.scale], dtype=torch.float64)).tolist()
            by_inputs = DIMENSIONS[name.rpartition(".")[2]] == 1
            share = replace(
                update,
                a_RI=_share(a_RI, 1, self._group) if by_inputs else a_RI,
                b_OR=b_OR if by_inputs else _share(b_OR, 0, self._group),
                scale=scale,
            )
            shares[name] = share
        return super().load_adapter(shares)

    @contextmanager
    def _together(self, command: Command, *numbers: int) -> Iterator[None]:
        # a signal that ended what the leader does halfway would leave the others waiting for the rest
        with uninterrupted(), self._group.in_step():
            self._group.tell([command, *numbers])
            yield


def check_divisible(config: DecoderConfig, size: int) -> None:
    """Whether a model can be spread over so many processes.

    Raises:
        UsageError: It has experts, or its heads or its feed-forward cannot be shared out evenly.
    """
    if config.num_experts:
        raise UsageError("models with experts cannot be spread over processes", "leave out --tensor-parallel")
    for what, count in (("heads of keys and values", config.num_kv_heads), ("inner size", config.intermediate_size)):
        if count % size:
            raise UsageError(
                f"{what}: {count}, which {size} processes cannot share evenly",
                f"choose a divisor of {config.num_kv_heads} for tensor_parallel",
            )


def shard(model: Decoder, group: ProcessGroup) -> None:
    """Leave only this process's share of a model, in place; what its attentions and feed-forwards give is summed.

    Raises:
        UsageError: As `check_divisible`, or the groups of quantized weights cannot be shared evenly.
    """
    config, size = model.config, group.size
    check_divisible(config, size)
    for name, module in list(model.named_modules()):
        dimension = DIMENSIONS.get(name.rpartition(".")[2])
        if dimension is not None:
            assert isinstance(module, nn.Linear | QuantizedLinear)
            model.set_submodule(name, _cut(module, dimension, group).train(module.training))
        elif isinstance(module, Attention):
            module.num_heads //= size
            module.num_kv_heads //= size
            if module.qk_norm == "hidden":
                _normalize_together(module.q_norm, group)
                _normalize_together(module.k_norm, group)
        if isinstance(module, Attention | FeedForward):
            module.register_forward_hook(_summed(group))
    if group.rank > 0:
        model.lm_head = None
    model.config = config.model_copy(
        update={
            "num_heads": config.num_heads // size,
            "num_kv_heads": config.num_kv_heads // size,
            "head_dim": config.head_size,
            "intermediate_size": config.intermediate_size // size,
        }
    )


def _cut(module: nn.Linear | QuantizedLinear, dimension: int, group: ProcessGroup) -> nn.Linear | QuantizedLinear:
    bias = module.bias
    if bias is not None:  # of sums it is added once
        bias = nn.Parameter(_share(bias.detach(), 0, group)) if dimension == 0 else bias if group.rank == 0 else None
    if isinstance(module, QuantizedLinear):
        weight = module.weight
        if weight.scales.shape[dimension] % group.size:
            raise UsageError(
                f"groups of {weight.group_size} weights cannot be shared evenly by {group.size} processes",
                "take fewer processes, or a model that is not quantized",
            )
        codes, scales = (_share(part, dimension, group) for part in (weight.codes, weight.scales))
        return QuantizedLinear(QuantizedWeight(codes, scales, weight.bits, weight.group_size), bias)
    with torch.device("meta"):
        narrow = Linear(1, 1, bias=False)
    narrow.weight = nn.Parameter(_share(module.weight.detach(), dimension, group))
    narrow.out_features, narrow.in_features = narrow.weight.shape
    narrow.register_parameter("bias", bias)
    return narrow


def _summed(group: ProcessGroup) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _module, _inputs, output_1TD: group.sum_(output_1TD)


def _share(whole: Tensor, dimension: int, group: ProcessGroup) -> Tensor:
    return whole.chunk(group.size, dimension)[group.rank].clone(memory_format=torch.contiguous_format)


def _normalize_together(norm: nn.Module, group: ProcessGroup) -> None:
    """Let a norm see what all processes have, and give its own part on."""
    norm.register_forward_pre_hook(lambda _norm, inputs: torch.cat(group.gather(inputs[0]), dim=-1))
    norm.register_forward_hook(lambda _norm, _inputs, output: output.chunk(group.size, dim=-1)[group.rank])


def _numbers(spans: Sequence[Span]) -> Iterator[int]:
    """Spans as followers have to know them: they make no logits."""
    for span in spans:
        yield from (span.start, span.adapter)
        for part in (span.tokens, *span.tables):
            yield len(part)
            yield from part


def _spans(numbers: Sequence[int], num_tables: int) -> Iterator[Span]:
    rest = iter(numbers)
    for start in rest:
        adapter = next(rest)
        tokens, *tables = [list(itertools.islice(rest, next(rest))) for _ in range(1 + num_tables)]
        yield Span(tokens, start, 0, [array("i", table) for table in tables], adapter)


def _shapes(adapter: Adapter) -> Iterator[int]:
    """Names of layers and sizes of their updates: rank, inputs, outputs."""
    for name, update in adapter.items():
        yield from (len(name.encode()), *name.encode(), *update.a_RI.shape, len(update.b_OR))


def _empty_adapter(numbers: Sequence[int]) -> dict[str, LowRank]:
    """An adapter of these shapes, to be filled."""
    rest, adapter = iter(numbers), {}
    for length in rest:
        name = bytes(itertools.islice(rest, length)).decode()
        rank, inputs, outputs = itertools.islice(rest, 3)
        adapter[name] = LowRank(torch.empty(rank, inputs), torch.empty(outputs, rank), 1.0)
    return adapter
