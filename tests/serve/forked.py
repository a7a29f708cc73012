"""`tallow serve` forked from a process that has imported what it needs: the same code, without seconds of importing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

from tests.processes import start

from tallow import __main__
from tallow.serve import engine_process, worker


class Forked:
    """`tallow serve` with these arguments; offers what is used here of a `Popen`.

    Args:
        arguments: Behind `serve`.
        log: The file that its standard error goes to.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._process = start(_serve, list(arguments), log, dict(os.environ))
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that has ended it.

        Raises:
            subprocess.TimeoutExpired: It has not ended within so many seconds.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("tallow serve", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tallow", "serve", *arguments]
    processes = SimpleNamespace(Popen=_Engine, DEVNULL=subprocess.DEVNULL)
    with mock.patch.object(engine_process, "subprocess", processes):
        __main__.main()


class _Engine:
    """What the server's front starts as `python -P -m tallow.serve.worker`, forked from the front."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], stdin: int, env: Mapping[str, str]) -> None:
        assert command[1:-1] == ["-P", "-m", worker.__name__]
        assert stdin == subprocess.DEVNULL  # as it is in the front
        assert env == os.environ
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _work(command[-1], *pass_fds)

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _work(argument: str, kept: int) -> NoReturn:
    """An engine's life: it has nothing of the front's but its end of the connection."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        os.closerange(sys.stderr.fileno() + 1, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        sys.argv = [worker.__name__, argument]
        worker.main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
