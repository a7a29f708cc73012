"""A process that holds a share of a model, and computes what the leader tells it; it ends with the leader."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from tallow.console import say
from tallow.engine.choices import CachePrecision, Precision
from tallow.engine.make_runner import make_runner
from tallow.engine.process_group import LOOPBACK, ProcessGroup, ProcessLost
from tallow.engine.tensor_parallel import TensorParallelRunner
from tallow.errors import TallowError
from tallow.models.formats import open_model
from tallow.models.store import resolve


def follow(
    group: ProcessGroup, name_or_path: str, precision: Precision = "auto", cache_precision: CachePrecision = "auto"
) -> None:
    """Load a share of a model, and compute with it until the leader ends.

    Args:
        group: The processes that have the other shares.
        name_or_path, precision, cache_precision: As `load` says; they must be those of the leader.

    Raises:
        ProcessLost: The leader has ended.
        UsageError, DataError, CapacityError: As `load`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides when it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stored = open_model(resolve(name_or_path))
    runner = make_runner(stored, precision, device="cpu", cache_precision=cache_precision, group=group)
    assert isinstance(runner, TensorParallelRunner)
    del stored
    runner.follow()


def main() -> None:
    """Follow the process that has started this one and says how on standard input."""
    message = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_leader, daemon=True).start()
    try:
        group = ProcessGroup(message.pop("url"), message.pop("rank"), message.pop("size"), LOOPBACK)
        follow(group, **message)
    except ProcessLost:
        sys.exit(1)
    except TallowError as error:
        say(f"process {os.getpid()} of the model: {error.message} ({error.hint})")
        sys.exit(error.exit_code)


def _end_with_leader() -> None:
    """Also while this process loads, or waits for another."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
