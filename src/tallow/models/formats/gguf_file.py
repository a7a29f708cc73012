"""The GGUF container: a header of metadata and tensor descriptions, then the tensors.

Layout: the GGUF specification of the ggml project, versions 2 and 3, little-endian. The header is parsed
here rather than by `gguf.GGUFReader`, which trusts the counts and lengths in the file (a hostile one makes
it loop or allocate without end) and takes seconds where this takes a tenth of one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from tallow.errors import DataError, reading
from tallow.kernels.blocks import BlockWeight, unpack_blocks

CHUNK_ELEMENTS = 1 << 20
"""Converted at a time, so that a conversion costs little memory beyond its result."""

MAX_DIMENSIONS = 4
MAX_METADATA_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
LENGTH = struct.Struct("<Q")
MAX_ARRAY_STRINGS = 1 << 24

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "<u1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}

_TORCH_DTYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file, and how.

    Args:
        shape: Slowest dimension first, as torch has it (the file has it reversed).
        offset: From the start of the file, in bytes.
        row_bytes: Bytes of one row (the last dimension).
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype that holds its values exactly."""
        return _TORCH_DTYPES.get(self.kind, torch.float32)

    @property
    def is_plain(self) -> bool:
        """Whether it holds plain values, not blocks."""
        return self.kind in _TORCH_DTYPES


class GGUFFile:
    """A GGUF file opened for reading: `metadata` by key, and `tensors` by name.

    Raises:
        DataError: The file is missing, no GGUF, of a version or byte order that is not supported, truncated, or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "GGUF file"):
            path.open("rb").close()
        size = path.stat().st_size
        if size < 24:
            raise DataError(f"{path} is no GGUF file: it has only {size} bytes", "copy or download it again")
        self.metadata: Mapping[str, Any]
        self.tensors: Mapping[str, StoredTensor]
        self.metadata, self.tensors = _Header(path, np.memmap(path, dtype=np.uint8, mode="r").data).parse()

    def read(self, name: str, dtype: torch.dtype | None = None, rows: slice | None = None) -> Tensor:
        """A tensor, or some of its rows.

        Args:
            dtype: None leaves F32, F16 and BF16 as stored, mapped from the file, and makes float32 of others.
            rows: Of the first dimension; a tensor with one dimension counts its entries.

        Raises:
            DataError: Its type cannot be dequantized, or the file was cut short since it was opened.
        """
        stored = self.tensors[name]
        if rows is not None and len(stored.shape) == 1:
            return self.read(name, dtype)[rows]
        shape, offset = _place(stored, rows)
        dtype = dtype or stored.dtype
        if dtype == _TORCH_DTYPES.get(stored.kind):
            return self._map(stored, offset, math.prod(shape[:-1])).view(dtype).view(shape)
        return self._convert(stored, dtype, shape, offset)

    def blocks(self, name: str, rows: slice | None = None) -> Tensor:
        """The bytes of a matrix, or of some of its rows, mapped from the file: uint8, rows × bytes of a row.

        Raises:
            DataError: The file was cut short since it was opened.
        """
        stored = self.tensors[name]
        shape, offset = _place(stored, rows)
        return self._map(stored, offset, math.prod(shape[:-1])).view(-1, stored.row_bytes)

    def _map(self, stored: StoredTensor, offset: int, rows: int) -> Tensor:
        """Bytes of the file through a mapping of their own, which goes with them: so do the pages that were read.

        They are copy-on-write: a page that training writes to becomes private to the process.
        """
        try:
            # as a string: numpy would resolve a Path, which takes longer than the mapping
            mapped = np.memmap(str(self.path), np.uint8, "c", offset, (rows * stored.row_bytes,))
        except ValueError as error:
            raise self._cut_short(stored) from error
        return torch.from_numpy(mapped)

    def _convert(self, stored: StoredTensor, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
        """Convert some rows at a time; they are read, not mapped, so that the file's pages do not stay in memory."""
        flat = torch.empty(math.prod(shape[:-1]), shape[-1], dtype=dtype)
        step = max(1, CHUNK_ELEMENTS // shape[-1])
        for first in range(0, len(flat), step):
            count = min(step, len(flat) - first)
            raw = np.fromfile(self.path, np.uint8, count * stored.row_bytes, offset=offset + first * stored.row_bytes)
            if len(raw) < count * stored.row_bytes:
                raise self._cut_short(stored)
            flat[first : first + count] = self._values(stored, torch.from_numpy(raw).view(count, -1))
        return flat.view(shape)

    def _values(self, stored: StoredTensor, rows: Tensor) -> Tensor:
        if stored.kind in _TORCH_DTYPES:
            return rows.view(_TORCH_DTYPES[stored.kind])
        try:
            return unpack_blocks(BlockWeight(rows, int(stored.kind), stored.shape[-1]))
        except NotImplementedError as error:
            raise DataError(
                f"tensor {stored.name} in {self.path} has the type {stored.kind.name}, which cannot be read",
                "use a file of another type, such as Q8_0 or Q4_K_M",
            ) from error

    def _cut_short(self, stored: StoredTensor) -> DataError:
        return DataError(f"{self.path} ends within the tensor {stored.name}", "copy or download it again")


def _place(stored: StoredTensor, rows: slice | None) -> tuple[tuple[int, ...], int]:
    """Shape and offset of some rows of a tensor."""
    if rows is None:
        return stored.shape, stored.offset
    start, stop, _ = rows.indices(stored.shape[0])
    below = stored.rows // stored.shape[0] * stored.row_bytes
    return (stop - start, *stored.shape[1:]), stored.offset + start * below


class _Header:
    """A parser that never reads beyond the file and never loops longer than the file is."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.position = path, data, 0

    def parse(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        if bytes(self._take(4)) != b"GGUF":
            raise DataError(f"{self.path} is no GGUF file: it does not begin with GGUF", "check the path")
        version = self._integer("<I")
        if version & 0xFFFF == 0:
            raise DataError(f"{self.path} is a big-endian GGUF file", "only little-endian files are supported")
        if version not in (2, 3):
            raise DataError(f"{self.path} is of GGUF version {version}", "versions 2 and 3 are supported: convert it")
        num_tensors, num_keys = self._integer("<Q"), self._integer("<Q")
        if num_keys > MAX_METADATA_KEYS or num_tensors > MAX_TENSORS:
            raise self._broken(f"it claims {num_keys} metadata keys and {num_tensors} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._broken(f"metadata key {key} appears twice")
            metadata[key] = self._value(self._value_type())
        if metadata.get("split.count", 1) not in (0, 1):
            raise DataError(
                f"{self.path} is one part of a GGUF model in several files, which are not supported",
                "join them with llama.cpp's `llama-gguf-split --merge`",
            )
        return metadata, self._tensors(num_tensors, metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT))

    def _tensors(self, count: int, alignment: Any) -> dict[str, StoredTensor]:
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._broken(f"its alignment is {alignment}")
        described = [self._tensor() for _ in range(count)]
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        total = 0
        for name, shape, kind, offset in described:
            block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % block_elements:
                raise self._broken(f"rows of {name} are no multiple of {block_elements}")
            tensor = StoredTensor(name, shape, kind, start + offset, shape[-1] // block_elements * block_bytes)
            size = tensor.rows * tensor.row_bytes
            total += size
            if tensor.offset % 4 or tensor.offset + size > len(self.data) or total > len(self.data):
                raise self._broken(f"tensor {name} does not lie inside of it; it may be cut short")
            if name in tensors:
                raise self._broken(f"tensor {name} appears twice")
            tensors[name] = tensor
        return tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, dimensions = self._string(), self._integer("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._broken(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._integer("<Q") for _ in range(dimensions))[::-1]
        if not all(shape):
            raise self._broken(f"tensor {name} is empty")
        number = self._integer("<I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise DataError(
                f"tensor {name} in {self.path} has the unknown type {number}", "convert it to another type"
            ) from error
        return name, shape, kind, self._integer("<Q")

    def _value_type(self) -> GGUFValueType:
        number = self._integer("<I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise self._broken(f"it has a metadata value of the unknown type {number}") from error

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._scalars(kind, 1)[0]
        item, count = self._value_type(), self._integer("<Q")
        if item == GGUFValueType.ARRAY:
            raise self._broken("it has arrays of arrays in its metadata")
        if item != GGUFValueType.STRING:
            return self._scalars(item, count)
        if count > MAX_ARRAY_STRINGS:
            raise self._broken(f"it claims an array of {count} strings")
        return self._strings(count)

    def _scalars(self, kind: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return [bool(value) for value in values] if kind == GGUFValueType.BOOL else values

    def _string(self) -> str:
        raw = self._take(self._integer("<Q"))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._broken("it has a string that is not UTF-8") from error

    def _strings(self, count: int) -> list[str]:
        """As `_string` so many times, but quickly: vocabularies have a hundred thousand."""
        data, position, end = self.data, self.position, len(self.data)
        strings = []
        for _ in range(count):
            start = position + LENGTH.size
            position = start + LENGTH.unpack_from(data, position)[0] if start <= end else end + 1
            if position > end:
                raise self._broken("it ends within its header")
            try:
                strings.append(str(data[start:position], "utf-8"))
            except UnicodeDecodeError as error:
                raise self._broken("it has a string that is not UTF-8") from error
        self.position = position
        return strings

    def _integer(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise self._broken("it ends within its header")
        self.position, start = end, self.position
        return self.data[start:end]

    def _broken(self, problem: str) -> DataError:
        return DataError(f"GGUF file {self.path} is broken: {problem}", "copy or download it again")
