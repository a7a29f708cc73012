"""Running what has been packed: in memory, or from the file."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tallow.console import say
from tallow.engine.choices import CachePrecision, Device, Placement, Precision, chooses_gpu
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_model import CacheNumber, Plan
from tallow.engine.packed_store import StoredPackedModel, find_packed
from tallow.kernels import cpu
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.memory import free_bytes
from tallow.models.store import store_directory

CACHE_NUMBERS: dict[str, CacheNumber] = {"fp32": "float32", "bf16": "bfloat16", "q8": "int8"}
WEIGHTS_SHARE = 0.75
"""Weights may take this part of the memory that is free; the rest is for the cache and for what computes."""
DISK_SHARE = 0.1
"""What is packed is kept for later starts if it takes no more than this part of the disk's free space."""


def load_packed(path: Path, precision: Precision, device: Device) -> StoredPackedModel | None:
    """What an earlier process has packed of a model, if this one would do so again.

    With that nothing needs torch, whose import takes longer than the rest of a start.

    Raises:
        UsageError: There is no such device.
    """
    if sys.platform != "linux" or not prefers_fast() or cpu.native() is None or chooses_gpu(device):
        return None
    return find_packed(path, precision)


def run_packed(found: StoredPackedModel, placement: Placement, cache_precision: CachePrecision) -> NativeRunner:
    """A runner whose weights are in memory, or in the file.

    Raises:
        MemoryError: There is not enough for weights that are to be in memory.
    """
    cache = CACHE_NUMBERS.get(cache_precision)
    if placement == "memory" or (placement == "auto" and fits_memory(found.plan)):
        return NativeRunner(found.read(), cache)
    disk = found.read_bandwidth()
    runner = NativeRunner(found.map(), cache, resident_bytes=WEIGHTS_SHARE * free_bytes(mapped=True))
    _say_speed(runner, disk)
    return runner


def fits_memory(plan: Plan) -> bool:
    """Whether there is room for a packed model in memory."""
    return plan.num_bytes <= WEIGHTS_SHARE * free_bytes()


def is_worth_keeping(plan: Plan) -> bool:
    """Whether the disk has room to spare for a packed model."""
    home = store_directory().parent
    existing = next(place for place in (home, *home.parents) if place.exists())
    return plan.num_bytes <= DISK_SHARE * shutil.disk_usage(existing).free


def _say_speed(runner: NativeRunner, disk: float) -> None:
    whole, streamed = runner.weight_bytes, runner.streamed_bytes
    if streamed:
        what, speed = f"{streamed / 1e9:.2f} of {whole / 1e9:.2f} GB for each token", f"{disk / streamed:.2g} tokens/s"
    else:
        what, speed = f"{whole / 1e9:.2f} GB once, as they are needed", f"{whole / disk:.2g} s"
    say(f"weights are read from the disk, {what}; at the {disk / 1e9:.2f} GB/s that it gives, about {speed}")
