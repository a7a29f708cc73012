"""The safetensors of a directory: one file, or shards with an index. Reading maps them, without a copy.

A page of a mapped tensor that is written to (training) becomes private; the file never changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tallow.errors import DataError, reading
from tallow.files import atomic_file, read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TensorFiles:
    """The stored tensors of a directory, by name.

    Args:
        directory: Holds `model.safetensors`, or shards and `model.safetensors.index.json`.

    Raises:
        DataError: There are none, the index is broken or points elsewhere, or a file is broken.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open_files: dict[str, Any] = {}
        if not (directory / WEIGHTS).exists() and (directory / INDEX).exists():
            self._file_of = _read_index(directory / INDEX)
        else:
            self._file_of = dict.fromkeys(self._kept_open(WEIGHTS).keys(), WEIGHTS)
        self.unread = set(self._file_of)
        """Names of the tensors that nobody has asked for yet."""

    def __len__(self) -> int:
        return len(self._file_of)

    def find(self, spellings: Sequence[str]) -> str:
        """Which of these names there is; a tensor that was found counts as read.

        Raises:
            DataError: There is none.
        """
        for name in spellings:
            if name in self._file_of:
                self.unread.discard(name)
                return name
        raise DataError(
            f"{self.directory} has no tensor {spellings[0]}", "config.json and the weights are not of the same model"
        )

    def read(self, name: str, *, alone: bool = False) -> Tensor:
        """The tensor of this name as it is stored, mapped from the file.

        Args:
            alone: It will be copied and dropped. Then it is read through a mapping of its own, which goes with it: the
                pages read do not add to the memory of the copy.

        Raises:
            DataError: There is none, or its file is missing or broken.
        """
        file = self._file_of[self.find([name])]
        try:
            return (self._open(file) if alone else self._kept_open(file)).get_tensor(name)
        except SafetensorError as error:
            raise DataError(
                f"{self.directory / file} cannot give the tensor {name}: {error}", "copy or download it again"
            ) from error

    def read_weight(self, spellings: Sequence[str], dtype: torch.dtype | None = None, *, alone: bool = False) -> Tensor:
        """The floating-point tensor that is stored under the first of these names that there is.

        Args:
            dtype: Convert it; None leaves it as it is, mapped from the file.
            alone: As `read` says; a tensor that is converted is read like that, too.

        Raises:
            DataError: There is none, it is not of floating point, or its file is missing or broken.
        """
        name = self.find(spellings)
        tensor = self.read(name, alone=alone)
        if tensor.dtype not in DTYPES:
            raise DataError(
                f"tensor {name} in {self.directory} is stored as {tensor.dtype}, which is not supported",
                "take a model whose weights are float32, bfloat16 or float16",
            )
        if dtype in (None, tensor.dtype):
            return tensor
        return (tensor if alone else self.read(name, alone=True)).to(dtype)

    def _kept_open(self, file: str) -> Any:
        if file not in self._open_files:
            self._open_files[file] = self._open(file)
        return self._open_files[file]

    def _open(self, file: str) -> Any:
        path = self.directory / file
        if file == WEIGHTS and not path.exists():
            self._refuse_pickles()
        with reading(path, "weights file"):
            path.open("rb").close()
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"weights file {path} is broken or truncated: {error}", "copy or download it again"
            ) from error

    def _refuse_pickles(self) -> None:
        for pattern in PICKLES:
            for path in self.directory.glob(pattern):
                raise DataError(
                    f"{path} is a pickle, which may run any code, and there is no {WEIGHTS} beside it",
                    "tallow reads safetensors only; take a revision of the model that has them",
                )


def write_tensor_files(sizes: Mapping[str, int], tensor: Callable[[str], Tensor], directory: Path) -> None:
    """Write tensors into one file, or into shards of at most `SHARD_BYTES` with an index.

    Args:
        sizes: Bytes of each tensor, in the order to write them.
        tensor: Gives the tensor of a name; asked for one shard at a time.

    Raises:
        OSError: The place cannot be written, or the disk is full.
    """
    shards = _shards(sizes)
    if len(shards) == 1:
        write_tensors({name: tensor(name) for name in shards[0]}, directory / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors({name: tensor(name) for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_tensors(tensors: Mapping[str, Tensor], path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; atomic.

    Args:
        notes: Text for the file's header.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written.
    """
    with atomic_file(path) as temporary:  # which also sets the usual permissions
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, {"format": "pt", **(notes or {})})
        except SafetensorError as error:
            # the library hides the number of the operating system's error in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error), str(path)) from error


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        DataError: The index is not one, or names a file that is not beside it.
    """
    weight_map = read_json(path, "weight index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise DataError(f"{path} has no weight_map from tensors to files", "restore it from the model's source")
    for file in set(weight_map.values()):
        if Path(file).name != file or not file.endswith(".safetensors") or "\0" in file:
            raise DataError(
                f"{path} names {file!r}, which is not a safetensors file in its directory",
                "restore it from the model's source",
            )
    return weight_map
