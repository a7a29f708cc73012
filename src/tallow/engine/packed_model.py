"""A model as the C++ decoder runs it: a description, and one piece of memory with all of its weights."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tallow.kernels import cpu
from tallow.models.config import DecoderConfig

Number = Literal["float32", "bfloat16", "int8", "int4", "int6", "compressed_bfloat16", "nested_int4"]
CacheNumber = Literal["float32", "bfloat16", "int8"]
Integers = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

LANES = 16
HUGE_PAGE = 2 << 20
GROUP_SIZE = 32
"""Of weights that are rounded here."""

# as enum Number has them
NUMBERS: dict[Number, int] = {
    **{"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "int6": 4},
    **{"compressed_bfloat16": 5, "nested_int4": 6},
}


@dataclass(frozen=True)
class Part:
    """Linear layers or a table that are packed as one weight.

    Args:
        names: Of the modules.
        rows: Outputs of each.
        inputs: Of all of them.
        number: What the weight is held in; integers have groups of `group` inputs.
        by_turns: 16 rows of the first, then 16 of the second, and so on; else the rows follow each other.
        groups_per_scale: Groups of 32 activations that share a scale where they are rounded.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    inputs: int
    number: Number
    group: int
    has_bias: bool
    by_turns: bool = False
    groups_per_scale: int = 1

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


@dataclass(frozen=True)
class Norm:
    """A norm; where it has a weight and a bias, the places of these among the floats."""

    kind: Literal["rms", "layer", "none"]
    eps: float = 0.0
    weight: int | None = None
    bias: int | None = None


@dataclass(frozen=True)
class Layer:
    """A layer of the model.

    Args:
        norms: By the name that `DecoderLayer` in C++ has for them.
        rotation: Places of the cosines and sines of all positions among the floats.
    """

    qkv: Part
    out: Part
    up: Part
    down: Part
    norms: dict[str, Norm]
    rotation: tuple[int, int] | None
    scale: float
    softcap: float
    window: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.qkv, self.out, self.up, self.down

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """All of a model, in the order in which it lies in memory: the weights of the layers and of the ends, then floats.

    Args:
        head: The output matrix; None where it is the embedding.
        positions: The place of learned positions among the floats.
        num_floats: How many there are, each vector with zeros behind it.
        in_fp32: Whether keys and values are held in fp32 if nothing else is said; else `cache` says it.
        factors: By the names of linear layers whose channels have been made alike, places of their `Factors`.
    """

    config: DecoderConfig
    layers: list[Layer]
    embedding: Part
    head: Part | None
    norm: Norm
    positions: int | None
    num_floats: int
    in_fp32: bool
    factors: dict[str, tuple[int | None, int | None]]

    @property
    def cache(self) -> CacheNumber:
        """What keys and values are held in if nothing else is said: in 8 bits beside weights of 4, whose rounding costs
        a model a hundred times as much."""
        if self.in_fp32:
            return "float32"
        has_4_bits = any(part.number in ("int4", "nested_int4") for layer in self.layers for part in layer.parts)
        return "int8" if has_4_bits else "bfloat16"

    @property
    def parts(self) -> Iterator[Part]:
        """All weights."""
        yield from itertools.chain(*(layer.parts for layer in self.layers))
        yield from (self.embedding,) if self.head is None else (self.embedding, self.head)

    @property
    def weight_bytes(self) -> int:
        """Where the floats begin."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + 4 * self.num_floats


class Memory:
    """Memory of a plan.

    Args:
        bytes: It.
        descriptor: Of the file that is mapped; None: it is memory of its own.
    """

    def __init__(self, bytes: Bytes, descriptor: int | None = None) -> None:
        self.bytes, self.descriptor = bytes, descriptor

    @staticmethod
    def of_its_own(num_bytes: int) -> Memory:
        """New memory, in huge pages where the system gives them: weights are streamed through once a token.

        Raises:
            MemoryError: There is not so much.
        """
        try:
            mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{num_bytes:,} bytes for weights") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        room = np.frombuffer(mapping, np.uint8)
        begin = -room.ctypes.data % HUGE_PAGE
        return Memory(room[begin : begin + num_bytes])

    @staticmethod
    def of_file(descriptor: int, num_bytes: int, *, writable: bool) -> Memory:
        """A mapping that is shared with every process that maps the file; the descriptor stays the caller's."""
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        mapping = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED, protection)
        descriptor = os.dup(descriptor)
        memory = Memory(np.frombuffer(mapping, np.uint8), descriptor)
        weakref.finalize(memory, os.close, descriptor)
        return memory

    @property
    def address(self) -> int:
        return self.bytes.ctypes.data


@dataclass(frozen=True)
class PackedModel:
    """A model that is ready to run."""

    plan: Plan
    memory: Memory


def _by_turns(rows: int) -> Integers:
    """16 rows of the first half, then 16 of the second, and so on; −1 where there are not so many."""
    padded = -(-rows // LANES) * LANES
    first = np.full(padded, -1, dtype=np.int32)
    first[:rows] = np.arange(rows)
    second = np.where(first >= 0, first + rows, -1)
    return np.stack([first.reshape(-1, LANES), second.reshape(-1, LANES)], axis=1).flatten().astype(np.int32)
