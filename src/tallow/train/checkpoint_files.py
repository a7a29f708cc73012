"""The tensor files of a checkpoint, in the form that PyTorch's distributed checkpoints have on safetensors.

Each process writes its shares of what is divided into a file of its own, which says where in the whole they lie. So
they can be read by any number of processes that divide it in any other way: `torch.distributed.checkpoint` finds out
who needs what of which file. Nothing is pickled: what it would send between processes, it plans on each alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from tallow.errors import DataError
from tallow.models.formats.tensor_files import write_tensors

SHARDING = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"


@dataclass(frozen=True)
class Shares:
    """What a process has of some tensors.

    Args:
        tensors: Its shares, on the CPU.
        offsets: Where in the whole each begins.
    """

    tensors: dict[str, Tensor]
    offsets: dict[str, list[int]]


def take_shares(tensors: Mapping[str, Tensor], *, copied: bool = False) -> Shares:
    """This process's shares of some tensors; what is no DTensor is whole.

    Args:
        copied: What becomes of the tensors is not to change the shares.
    """
    shares: dict[str, Tensor] = {}
    offsets: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            [chunk] = tensor.__create_chunk_list__()
            share, offset = tensor.to_local(), list(chunk.offsets)
        else:
            share, offset = tensor, [0] * tensor.ndim
        share = share.detach()
        # what comes from a GPU is a copy in any case
        shares[name], offsets[name] = share.clone() if copied and share.device.type == "cpu" else share.cpu(), offset
    return Shares(shares, offsets)


def write_shares(shares: Shares, path: Path) -> None:
    """Write them to a file.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written.
    """
    sharding = {name: {OFFSETS: offset} for name, offset in shares.offsets.items()}
    write_tensors(shares.tensors, path, {SHARDING: json.dumps(sharding)})


def stored_tensors(directory: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Whole shape and dtype of the tensors in all files of a directory, by name.

    Raises:
        DataError: One of them is not a file of tensors.
    """
    try:
        stored = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"a file of tensors in {directory} is damaged", "") from error
    found: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, description in stored.items():
        assert isinstance(description, TensorStorageMetadata)
        found[name] = description.size, description.properties.dtype
    return found


def read_shares(directory: Path, place: Callable[[str, torch.Size, torch.dtype], Tensor | None]) -> dict[str, Tensor]:
    """Read the tensors of all files of a directory.

    Args:
        place: Where the tensor of a name, shape and dtype is to go; a DTensor is given this process's share. None: it
            is not wanted here.
    """
    wanted: dict[str, Tensor] = {}
    for name, (size, dtype) in stored_tensors(directory).items():
        target = place(name, size, dtype)
        if target is not None:
            wanted[name] = target
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads for itself
        load(wanted, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    return wanted
