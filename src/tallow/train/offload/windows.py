"""The state of optimizers in a file: while some parameters are updated theirs is in memory, and the next is read.

Source: arXiv 2104.07857, sections 5.2 and 6.3 (windows of a fixed size, reading ahead and writing back beside them).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tallow.parallel.shares import own_share, with_share
from tallow.train.offload.mapped_file import MappedFile, Slot, extent
from tallow.train.state_tree import map_tensors

WINDOW_BYTES = 32 << 20
"""Of the parameters that are updated together."""
SMALL_BYTES = 16 << 10
"""What has less stays in memory."""


class StateWindows:
    """Keeps what belongs to parameters out of memory while others are updated.

    An optimizer must not look at several parameters together, but for the learning rate and other settings of their
    group: then it does the same whether it is given all of them or some at a time.

    Args:
        file: Where the state goes; parameters that lie there leave memory, too.
        with_state: Whether the state goes there.
        classes: Of the objects in the state, beside tensors, numbers, lists and mappings.
    """

    def __init__(self, file: MappedFile, classes: Sequence[type], *, with_state: bool) -> None:
        self.file, self.classes, self.with_state = file, classes, with_state
        self._slots: defaultdict[Tensor, dict[str, Slot]] = defaultdict(dict)
        self._reader = ThreadPoolExecutor(1)

    def run(self, optimizer: Optimizer, act: Callable[[], object]) -> None:
        """Let an optimizer do something to all of its parameters, some at a time.

        Raises:
            CapacityError: The disk is full.
        """
        groups = optimizer.param_groups
        windows = [(group, window) for group in groups for window in windows_of(group["params"])]
        before = [{key: value for key, value in group.items() if key != "params"} for group, _ in windows]
        ahead = self._read(optimizer, windows[0][1])
        try:
            for number, (group, window) in enumerate(windows):
                ahead.result()
                if number + 1 < len(windows):
                    ahead = self._read(optimizer, windows[number + 1][1])
                own = {**before[number], "params": window}
                optimizer.param_groups = [own]
                act()
                # what a group counts it counts alike in each of its windows
                group.update({key: value for key, value in own.items() if key != "params"})
                self.settle(optimizer, window)
        finally:
            optimizer.param_groups = groups

    def settle(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        """Bring the state of parameters into the file, where it is not there, and let it leave memory.

        Raises:
            CapacityError: The disk is full.
        """
        for parameter in parameters:
            if self.with_state and parameter in optimizer.state:
                self._settle(optimizer.state[parameter], self._slots[parameter])
        self.file.drop(self._kept(optimizer, parameters))

    def _settle(self, state: dict[str, Any], slots: dict[str, Slot]) -> None:
        coming: dict[str, Tensor] = {}

        def leave(path: str, tensor: Tensor) -> Tensor:
            own = own_share(tensor)
            at_home = path in slots and slots[path].address == own.data_ptr()
            # entries that share their memory are few
            if not at_home and SMALL_BYTES <= own.nbytes <= extent(own) * own.itemsize:
                # what lies in the place of another must be out of it before that one comes
                coming[path] = own.clone() if self.file.holds(own) else own
            return tensor

        def come(path: str, tensor: Tensor) -> Tensor:
            if path not in coming:
                return tensor
            own = coming.pop(path)
            needed = extent(own) * own.itemsize
            if path not in slots or slots[path].num_bytes < needed:
                slots[path] = self.file.allocate(needed)
            return with_share(tensor, slots[path].tensor(own).copy_(own))

        map_tensors(state, leave, self.classes)
        map_tensors(state, come, self.classes)

    def _read(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> Future[None]:
        return self._reader.submit(self.file.want, self._kept(optimizer, parameters))

    def _kept(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Parameters that are in the file, and what is there of their state."""
        kept: list[Tensor] = []

        def look(_path: str, tensor: Tensor) -> Tensor:
            own = own_share(tensor)
            if self.file.holds(own):
                kept.append(own)
            return tensor

        for parameter in parameters:
            look("", parameter.detach())
            if parameter in optimizer.state:
                map_tensors(optimizer.state[parameter], look, self.classes)
        return kept


def windows_of(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours that have no more than `WINDOW_BYTES` together, or one that has more."""
    window: list[Tensor] = []
    room = WINDOW_BYTES
    for parameter in parameters:
        size = own_share(parameter).nbytes
        if window and size > room:
            yield window
            window, room = [], WINDOW_BYTES
        window.append(parameter)
        room -= size
    if window:
        yield window
