"""The engine's side of the process that compiles grammars: started when needed, killed when it takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from tallow.engine import grammar_worker
from tallow.engine.grammar_worker import Vocabulary
from tallow.engine.structure import CompileLimits
from tallow.errors import CapacityError, UsageError

START_S = 60.0
WALL_FACTOR = 6
"""By what a grammar's time on the clock may exceed its processor time: machines may be busy."""

KEPT_BYTES = 64 << 20
"""A worker that one grammar has made larger than this is not used for another."""


class GrammarProcess:
    """A worker process, started by its first grammar and again after its end; for one thread at a time.

    Args:
        vocabulary: The model's tokens.
        limits: For each grammar.
    """

    def __init__(self, vocabulary: Vocabulary, limits: CompileLimits) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._process: subprocess.Popen[str] | None = None

    def prove(self, source: str) -> int:
        """Let the worker show that a grammar compiles, and yields masks, within the limits.

        Returns:
            Memory that it took, in bytes.

        Raises:
            UsageError: It does not.
            CapacityError: No worker can be started.
        """
        limits = self._limits
        process = self._running()
        job = {"source": source, "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes}
        reply = _exchange(process, job, limits.cpu_s * WALL_FACTOR)
        if reply is None:
            self.close()
            raise UsageError(
                f"the structure cannot be compiled within {limits.cpu_s:g} s and {limits.memory_bytes >> 20} MB",
                "make it simpler: fewer alternatives, smaller repetition counts, less nesting",
            )
        if reply["data_bytes"] > KEPT_BYTES:
            self.close()
        if reply["error"]:
            raise UsageError(
                f"the structure cannot be used: {reply['error']}",
                "take most of JSON Schema, expressions without look-around, or a Lark grammar with a rule `start`",
            )
        return reply["data_bytes"]

    def close(self) -> None:
        """End the worker, whatever it does; what waits for its answer gets none."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def kill(self) -> None:
        """`close` for another thread than the one that uses it."""
        if self._process is not None:
            self._process.kill()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            try:
                self._process = subprocess.Popen(
                    # as a file, and without its directory on the path: nothing but the library is imported
                    [sys.executable, "-P", grammar_worker.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C is for tallow alone
                )
            except OSError as error:
                raise CapacityError(f"no process can be started: {error.strerror}", "end some others") from error
            if _exchange(self._process, self._vocabulary.as_json(), START_S) is None:
                self.close()
                raise CapacityError("the process that compiles structures does not start", "is llguidance installed?")
        return self._process


def _exchange(process: subprocess.Popen[str], message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """A line of JSON to a process and its answer; None if it ends, or must be ended, without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    finally:
        watchdog.cancel()
    return json.loads(line) if line.endswith("\n") else None
