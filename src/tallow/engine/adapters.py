"""The adapters that an engine can generate with, by name: loaded and let go while it runs.

Many adapters share one model in memory, and requests for different ones share a step (arXiv 2310.18547, 2311.03285).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tallow.engine.request import Request
from tallow.engine.runner import Runner
from tallow.engine.uninterrupted import uninterrupted
from tallow.errors import CapacityError, DataError, UsageError
from tallow.kernels.memory import machine_bytes

MAX_ADAPTERS = 64
MEMORY_SHARE = 16
"""Adapters may take this part of the machine's memory if nothing else is said."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that requests can name.

    Args:
        name: What they call it.
        path: The folder that it was read from.
        handle: What the runner calls it; another one if the name is loaded anew.
        num_bytes: Memory of its weights.
    """

    name: str
    path: Path
    handle: int
    num_bytes: int


class AdapterRegistry:
    """Loads adapters, and frees their memory once no request needs it any more.

    Args:
        runner: Computes with them.
        max_adapters: Most of them at a time.
        max_bytes: Most memory of their weights, those that only finish their requests included; None: a sixteenth of
            the machine's.
    """

    def __init__(self, runner: Runner, max_adapters: int = MAX_ADAPTERS, max_bytes: int | None = None) -> None:
        self._runner = runner
        self._max_adapters = max_adapters
        self._max_bytes = machine_bytes() // MEMORY_SHARE if max_bytes is None else max_bytes
        self._leaving: list[LoadedAdapter] = []
        self.loaded: dict[str, LoadedAdapter] = {}

    def load(self, name: str, path: Path) -> LoadedAdapter:
        """Load a folder as the `peft` library writes them, under a name that is free.

        Raises:
            DataError: The folder is broken, for another model, not plain LoRA, or changes more than the linear layers
                of attention and feed-forward.
            UsageError: The name is empty or taken, or there are too many adapters.
            CapacityError: Their weights would take too much memory.
        """
        if not name or name in self.loaded:
            problem = f"an adapter named {name!r} is loaded already" if name else "an adapter needs a name"
            raise UsageError(problem, "choose another name, or unload it first")
        if len(self.loaded) + len(self._leaving) >= self._max_adapters:
            raise UsageError(f"{self._max_adapters} adapters are loaded, and no more can be", "unload one first")
        from tallow.models.equalization import equalize_adapter  # these import torch
        from tallow.models.formats.adapters import read_adapter

        adapter = read_adapter(path, self._runner.config)
        if outside := [module for module in adapter if not module.startswith("layers.")]:
            raise DataError(f"adapter {path} changes {outside[0]}, outside of the layers", "merge it into its model")
        # as fp32, which runners compute with
        needed = 4 * sum(update.a_RI.numel() + update.b_OR.numel() for update in adapter.values())
        taken = sum(each.num_bytes for each in (*self.loaded.values(), *self._leaving))
        if taken + needed > self._max_bytes:
            raise CapacityError(
                f"adapter {path} takes {needed:,} bytes, and adapters have only {self._max_bytes - taken:,} left",
                "unload others first",
            )
        with uninterrupted():
            before = self._runner.weight_bytes
            handle = self._runner.load_adapter(equalize_adapter(adapter, self._runner.factors))
            loaded = LoadedAdapter(name, path, handle, self._runner.weight_bytes - before)
            self.loaded[name] = loaded
        return loaded

    def unload(self, name: str, requests: Iterable[Request]) -> None:
        """Let no more requests name an adapter; its memory is free once those that have begun are finished.

        Args:
            name: The adapter's.
            requests: All that are not finished.

        Raises:
            UsageError: There is no adapter of this name.
        """
        self.handle(name)
        with uninterrupted():
            self._leaving.append(self.loaded.pop(name))
            self.free_unused(requests)

    def handle(self, name: str | None) -> int:
        """The runner's handle of an adapter; 0 for None.

        Raises:
            UsageError: There is no adapter of this name.
        """
        if name is None:
            return 0
        if name not in self.loaded:
            known = ", ".join(self.loaded) or "none"
            raise UsageError(f"there is no adapter {name!r}", f"load it first; those that are: {known}")
        return self.loaded[name].handle

    def free_unused(self, requests: Iterable[Request]) -> None:
        """Free the memory of unloaded adapters that none of these requests, all that are not finished, needs."""
        if not self._leaving:
            return
        used = {request.adapter for request in requests}
        for adapter in [each for each in self._leaving if each.handle not in used]:
            self._leaving.remove(adapter)
            self._runner.unload_adapter(adapter.handle)
