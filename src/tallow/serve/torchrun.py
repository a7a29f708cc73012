"""A model spread over machines: `torchrun` starts `tallow serve` on each, and the first of them is the server.

It also starts all of them again (`--max-restarts`) when one has died, as they cannot find each other a second time.
"""

from __future__ import annotations

import os
import signal

from tallow.errors import UsageError
from tallow.serve.settings import ServeSettings


def num_processes() -> int:
    """How many `torchrun` has started; 1 if it has not started this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def spread(settings: ServeSettings) -> ServeSettings:
    """The settings with their model spread over all these processes.

    Raises:
        UsageError: There are several models, or it is to be unloaded, or spread over another number of processes.
    """
    size = num_processes()
    [(name, model), *others] = settings.models.items()
    if others or model.unload_after_s is not None or settings.replicas > 1:
        raise UsageError(
            "torchrun's processes can hold one model only, once, for as long as they run",
            "leave out the other models, --replicas and --unload-after-s",
        )
    if model.tensor_parallel not in (1, size):
        raise UsageError(
            f"tensor_parallel is {model.tensor_parallel}, torchrun has started {size} processes",
            "leave out --tensor-parallel",
        )
    return settings.model_copy(update={"models": {name: model.model_copy(update={"tensor_parallel": size})}})


def follow(settings: ServeSettings) -> None:
    """Hold a share of the model until the server ends.

    Raises:
        ProcessLost: It has ended.
        UsageError, DataError, CapacityError: The model cannot be loaded.
    """
    from tallow.engine.follower import follow as follow_leader  # imports torch, which the server itself does not need
    from tallow.engine.process_group import ProcessGroup

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, until there is a leader to wait for
    [model] = settings.models.values()
    follow_leader(ProcessGroup(), model.path, model.precision, model.cache_precision)
