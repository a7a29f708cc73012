"""How a command ends: its exit code, and every failure as one sentence, or as one object with `--json`."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from tallow.console import is_main_process
from tallow.errors import CapacityError, DataError, Interrupted, TallowError, UsageError, is_full, no_room

TYPER_INTERRUPTED = 130  # what typer makes of Ctrl-C
MAIN_SAYS_S = 5.0
"""How long another process waits for the main one to fail, too, before it speaks for itself."""


def run_command(command: Callable[[Sequence[str]], Any]) -> int:
    """Run a command with this process's arguments; returns the exit code."""
    arguments = sys.argv[1:]
    debug, as_json = "--debug" in arguments, "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is half-written is removed
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see `__main__`
        code = command(arguments)
        if code == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BaseException as error:
        if debug:
            traceback.print_exc()
        code = _report_failure(error, as_json)
    return code if isinstance(code, int) else 0


@contextmanager
def resumable() -> Iterator[None]:
    """Within this block is work with which the same command goes on after Ctrl-C.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", "run the same command again to go on") from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report_failure(error: BaseException, as_json: bool) -> int:
    """Say what went wrong; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):  # whoever read our output has gone, as in `tallow … | head`
        _give_up_output()
        return 0
    if isinstance(error, TyperException) and not str(error) and not isinstance(error, typer.BadParameter):
        return UsageError.exit_code  # no command was given: the help is printed already
    failure = _as_tallow_error(error)
    if type(failure) is Interrupted and not is_main_process():
        return failure.exit_code  # the main process stops too, and says so
    if not _said_by_main(failure):
        _say(failure, error, as_json and is_main_process())
        _note_said(failure)
    return failure.exit_code


def _say(failure: TallowError, error: BaseException, as_json: bool) -> None:
    """Print what went wrong: an object on standard output, or sentences on standard error."""
    if failure is not error and isinstance(failure, CapacityError) and isinstance(error, OSError):
        _give_up_output()
    elif as_json and _prints(failure.as_json()):
        return
    with suppress(OSError):
        console = Console(stderr=True, highlight=False)
        console.print(f"[red]error:[/red] {escape(failure.message)}", soft_wrap=True)
        if failure.hint:
            console.print(f"[dim]→ {escape(failure.hint)}[/dim]", soft_wrap=True)


def _said_by_main(failure: TallowError) -> bool:
    """Whether the main process of this machine's `torchrun` says the same, for which another one waits a moment."""
    said = _said_path()
    if is_main_process() or said is None:
        return False
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others as soon as one has failed
    deadline = time.monotonic() + MAIN_SAYS_S
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            return json.loads(said.read_text(encoding="utf-8")) == failure.as_json()
        time.sleep(0.05)
    return False


def _note_said(failure: TallowError) -> None:
    """Let the other processes know what the main one has said."""
    said = _said_path()
    if is_main_process() and said is not None:
        with suppress(OSError):
            said.write_text(json.dumps(failure.as_json()), encoding="utf-8")


def _said_path() -> Path | None:
    """A file in the directory that torchrun makes for each start of its processes; None: they are not torchrun's."""
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(own).parent.parent / "said.json" if own else None


def _prints(value: dict[str, Any]) -> bool:
    """Print an object; False if standard output takes nothing any more."""
    try:
        print_json(value)
        sys.stdout.flush()
    except OSError:
        _give_up_output()
        return False
    return True


def _give_up_output() -> None:
    """Let what is still to be printed go nowhere, so that Python does not complain at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_tallow_error(error: BaseException) -> TallowError:
    if isinstance(error, TallowError):
        return error
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return Interrupted("interrupted", "run again, the same command begins anew")
    if isinstance(error, TyperException):
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        return UsageError(message, _usage_hint(error, message))
    if isinstance(error, OSError) and is_full(error):
        return no_room(error, str(error.filename or "the output"))
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
        return UsageError(f"{error.filename}: {error.strerror}", "choose another place")
    if isinstance(error, OSError) and error.filename is not None:
        return DataError(f"{error.filename}: {error.strerror}", "check that it exists and may be read")
    if isinstance(error, MemoryError) or re.search("can(no|')t allocate memory", str(error), re.IGNORECASE):
        return CapacityError("not enough memory", "use a smaller model or batch, or a lower --precision")
    return TallowError(f"{type(error).__name__}: {error}", "this is a bug: run it again with --debug and report it")


def _usage_hint(error: TyperException, message: str) -> str:
    """What to do about a command line that does not fit."""
    context = getattr(error, "ctx", None)
    parameters = context.command.params if context is not None else ()
    repeated = [each.opts[0] for each in parameters if getattr(each, "multiple", False) and each.name != "overrides"]
    if repeated and "unexpected extra argument" in message:
        return f"name an option for each of its values: {repeated[0]} A {repeated[0]} B"
    return "tallow --help lists the commands, tallow COMMAND --help their options"


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def escape(text: str) -> str:
    return text.replace("[", "\\[")
