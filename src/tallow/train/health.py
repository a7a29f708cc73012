"""How a training run is doing, besides its loss: looked at on the steps that are recorded only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tallow.kernels.probe import matmul_peak
from tallow.parallel.shares import is_written_here
from tallow.run import peak_rss_bytes, rss_bytes
from tallow.train.activations import activation_peak
from tallow.train.precision import DTYPES, Precision
from tallow.train.stragglers import Stragglers
from tallow.train.update import Updater
from tallow.train.weight_change import WeightChange

PEAK_DTYPES: dict[Precision, torch.dtype] = {**DTYPES, "float8": torch.float8_e4m3fn}
"""In which products of each precision are the fastest."""


class Health:
    """Looks at a run's updates.

    Args:
        updater: What is trained.
        precision: Of its matrix products.
    """

    def __init__(self, updater: Updater, precision: Precision) -> None:
        self.updater, self.world = updater, updater.layout.workers.everyone
        self.dtype = PEAK_DTYPES[precision]
        self._stragglers = Stragglers(self.world)
        self._peak_flops: float | None = None
        self._change, self._weights, self._activation = 0.0, 0.0, math.nan

    @contextmanager
    def watching(self, wanted: bool) -> Iterator[None]:
        """Look at the update within this block, if that is wanted."""
        if not wanted:
            yield
            return
        mesh = self.updater.layout.mesh
        # a share that several processes have counts once
        before = WeightChange(value for value in self.updater.parameters.values() if is_written_here(value, mesh))
        with activation_peak(self.updater.layout.model) as activation:
            yield
        self._change, self._weights = before.squares()
        self._activation = math.nan if activation.value is None else activation.value

    def read(self, own_s: float, flops_per_s: float) -> dict[str, float]:
        """What was seen in the last update that was looked at; all processes must call it.

        Args:
            own_s: Median seconds of a step until this process met the others.
            flops_per_s: What all of them compute.

        Returns:
            `update_ratio`: norm of the update over that of the weights; `activation_max`: largest absolute value of the
            hidden states between layers; `mfu`: share of the processes' measured matrix product peak that is reached
            (arXiv 2204.02311, appendix B); `memory_bytes` and `peak_memory_bytes` of the largest process, on a GPU
            also `gpu_bytes` and `peak_gpu_bytes`; of several processes `slowest_rank`, and `slowest_s`, the time that
            a step takes there until it meets the others. What is not known, or not finite, is left out.
        """
        memory = self._memory()
        found = [self._change, self._weights, self._activation, own_s, self._peak(), *memory.values()]
        changes, weights, activations, seconds, peaks, *memories = zip(*self.world.gather(*found), strict=True)
        readings = {
            "update_ratio": _significant(math.sqrt(sum(changes) / sum(weights))) if sum(weights) else math.nan,
            "activation_max": _significant(max(activations)),
            "mfu": round(flops_per_s / sum(peaks), 4),
            **{name: int(max(values)) for name, values in zip(memory, memories, strict=True)},
        }
        if self.world.size > 1:
            self._stragglers.note(seconds)
            readings |= {"slowest_rank": seconds.index(max(seconds)), "slowest_s": round(max(seconds), 6)}
        return {name: value for name, value in readings.items() if math.isfinite(value)}

    def _peak(self) -> float:
        """Of this process, measured when it is first asked for: a third of a second, once a process."""
        if self._peak_flops is None:
            self._peak_flops = matmul_peak(self.dtype, self.updater.device.type)
        return self._peak_flops

    def _memory(self) -> dict[str, float]:
        memory: dict[str, float] = {"memory_bytes": rss_bytes(), "peak_memory_bytes": peak_rss_bytes()}
        device = self.updater.device
        if device.type == "cuda":
            memory |= {"gpu_bytes": torch.cuda.memory_allocated(device), "peak_gpu_bytes": peak_gpu_bytes(device)}
        return memory


def peak_gpu_bytes(device: torch.device) -> int:
    """Most memory of a GPU that tensors have taken since the last model was brought there; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _significant(value: float) -> float:
    return float(f"{value:.5g}")
