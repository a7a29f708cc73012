"""Token shards: one flat array of token ids and the start of each document in it, both memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tallow.data.manifest import ShardRecord
from tallow.errors import DataError, reading

LINEAGE_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("offset", pa.int64())])
HINT = "run the stage encode again"


class ShardWriter:
    """Writes one split into shards of whole documents.

    A shard is `<name>.npy` (token ids), `<name>.documents.npy` (uint64, where each document starts in it) and
    `<name>.lineage.parquet` (`id`, `source` and `offset` of each document). It is closed with the document that
    fills it.

    Args:
        directory: Where the shards go; made here.
        dtype: uint16 or uint32.
        shard_tokens: How many tokens fill a shard.
    """

    def __init__(self, directory: Path, dtype: np.dtype[np.unsignedinteger], shard_tokens: int) -> None:
        self.directory, self.dtype, self.shard_tokens = directory, dtype, shard_tokens
        self.directory.mkdir()
        self.shards: list[ShardRecord] = []
        self._begin()

    def add(
        self, tokens: npt.NDArray[np.unsignedinteger], lengths: npt.NDArray[np.int64], lineage: pa.RecordBatch
    ) -> None:
        """Append documents: their tokens one after another, the length of each, and where they came from."""
        ends = np.cumsum(lengths)
        first = 0
        while first < len(ends):
            done = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, done + self.shard_tokens - self._tokens)) + 1
            last = min(last, len(ends))
            self._append(tokens[done : int(ends[last - 1])], lengths[first:last], lineage.slice(first, last - first))
            if self._tokens >= self.shard_tokens:
                self._end()
            first = last

    def close(self) -> tuple[ShardRecord, ...]:
        """Write what is left; the shards for the manifest."""
        if self._tokens:
            self._end()
        return tuple(self.shards)

    def _begin(self) -> None:
        self._tokens = 0
        self._pieces: list[npt.NDArray[np.unsignedinteger]] = []
        self._starts: list[npt.NDArray[np.uint64]] = []
        self._lineage: list[pa.RecordBatch] = []

    def _append(
        self, tokens: npt.NDArray[np.unsignedinteger], lengths: npt.NDArray[np.int64], lineage: pa.RecordBatch
    ) -> None:
        self._pieces.append(tokens.astype(self.dtype))
        self._starts.append((self._tokens + np.cumsum(lengths) - lengths).astype(np.uint64))
        self._lineage.append(lineage)
        self._tokens += len(tokens)

    def _end(self) -> None:
        name = f"shard-{len(self.shards):05}"
        with open(tokens_path(self.directory, name), "wb") as file:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._tokens,)}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in self._pieces:
                file.write(piece.data)
        starts = np.concatenate(self._starts)
        np.save(starts_path(self.directory, name), starts, allow_pickle=False)
        lineage = pa.Table.from_batches(self._lineage, LINEAGE_SCHEMA)
        path = lineage_path(self.directory, name)
        pq.write_table(lineage, path, compression="zstd", use_dictionary=False, write_statistics=False)
        self.shards.append(ShardRecord(name=name, tokens=self._tokens, documents=len(starts)))
        self._begin()


@dataclass(frozen=True)
class Shard:
    """One shard, mapped: `tokens` (uint16 or uint32) and `starts` (uint64) of its documents."""

    path: Path
    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.uint64]

    @classmethod
    def open(cls, directory: Path, record: ShardRecord, dtype: str) -> Shard:
        """Map a shard and compare it with its record.

        Raises:
            DataError: A file is missing, cut short, or not what the manifest says.
        """
        path = tokens_path(directory, record.name)
        tokens = _map(path, dtype, record.tokens)
        starts = _map(starts_path(directory, record.name), "uint64", record.documents)
        rise = bool((starts[1:] > starts[:-1]).all())
        if record.documents and (starts[0] != 0 or starts[-1] >= record.tokens or not rise):
            raise DataError(f"{starts_path(directory, record.name)} does not fit its token shard", HINT)
        return cls(path, tokens, starts)

    @property
    def lineage(self) -> Path:
        """The file that says where its documents came from."""
        return lineage_path(self.path.parent, self.path.stem)


def tokens_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def starts_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.documents.npy"


def lineage_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.lineage.parquet"


def read_lineage(path: Path, column: str, documents: int) -> pa.ChunkedArray:
    """A column of the lineage of a shard that has so many documents.

    Raises:
        DataError: It is missing, damaged, or of another shard.
    """
    try:
        with reading(path, "lineage of a token shard"):
            values = pq.read_table(path, columns=[column]).column(column)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} is damaged", HINT) from error
    if len(values) != documents:
        raise DataError(f"{path} does not fit its token shard", HINT)
    return values


def _map(path: Path, dtype: str, length: int) -> npt.NDArray[Any]:
    try:
        with reading(path, "token shard"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"token shard {path} is damaged or cut short", HINT) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.shape != (length,):
        raise DataError(f"token shard {path} does not hold the {length:,} values of type {dtype} it should", HINT)
    return array
