"""Whether weights that are on disk are read while the layer before computes.

    python benchmarks/offload_read_ahead.py DIRECTORY [--rounds 3]

On one thread, the gradients of a Llama with 85 million weights in its layers (28 MB each) are computed: with weights in
memory, and with them in a file in that directory, of which nothing is left in the page cache when a layer has computed;
once with the next layer read ahead, and once without. Of the time it is told in how much of it the thread that computes
slept, for which there is no reason but the disk: while others have the processor it does not sleep. Its page faults are
those for which something had to be read. Of the rounds the one in which it slept the least counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from tallow.bench import random_batch
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.offload.layer_weights import LayerWeights
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.offload.weights_on_disk import WeightsOnDisk

SHAPE = {"vocab_size": 512, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12}
ROWS, LENGTH = 2, 64


class Forgotten(WeightsOnDisk):
    """Weights on disk, of which the system keeps nothing either."""

    def adopt(self, layer: nn.Module) -> None:
        super().adopt(layer)
        os.fdatasync(self.file._file.fileno())

    def drop(self, layer: nn.Module) -> None:
        super().drop(layer)
        os.posix_fadvise(self.file._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class ReadLate(Forgotten):
    """The same, read where they are used."""

    def want(self, layer: nn.Module) -> None:
        pass


def measure(directory: Path, source: type[WeightsOnDisk] | None, rounds: int) -> tuple[float, float, int]:
    """Seconds of sleep, seconds of work, and faults of the thread that computes."""
    model = Decoder(DecoderConfig.model_validate({**SHAPE, "intermediate_size": 2048}))
    initialize(model, seed=0)
    layout = Layout(model)
    if source is not None:
        LayerWeights(layout.layers, source(MappedFile(directory)))
    batch = random_batch(512, ROWS, LENGTH)
    work: Callable[[], object] = lambda: layout.backpropagate([batch], causal, nullcontext)  # noqa: E731
    work()
    found: list[tuple[float, float, int]] = []
    for _ in range(rounds):
        start, (ran, ready), faults = time.perf_counter(), _awake(), _faults()
        work()
        seconds, (ran_then, ready_then) = time.perf_counter() - start, _awake()
        found.append((seconds - (ran_then - ran) - (ready_then - ready), ran_then - ran, _faults() - faults))
    return min(found)


def _awake() -> tuple[float, float]:
    """Seconds in which this thread has run so far, and in which it could have run."""
    ran_ns, ready_ns, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    return ran_ns / 1e9, ready_ns / 1e9


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| weights | processor time, s | sleep, s | faults that read |\n|---|---|---|---|")
    for name, source in {"in memory": None, "read ahead": Forgotten, "read when used": ReadLate}.items():
        slept, ran, faults = measure(options.directory, source, options.rounds)
        print(f"| {name} | {ran:.2f} | {slept:.2f} | {faults} |", flush=True)


if __name__ == "__main__":
    main()
