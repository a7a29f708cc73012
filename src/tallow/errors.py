"""The errors a user meets: one sentence, what to do about it, and the exit code of its class."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_PLACE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EBUSY,
        errno.ENOENT,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""What the operating system answers where a file cannot be written at all."""


class TallowError(Exception):
    """Something the user can act on.

    Args:
        message: One sentence that says what is wrong, with the offending name or value in it.
        hint: What to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"type": type(self).__name__, "message": self.message, "hint": self.hint}}


class UsageError(TallowError):
    """The command line, the recipe or an argument asks for something that cannot be done."""

    exit_code = 2


class DataError(TallowError):
    """An input (text, model, tokenizer, checkpoint) is missing, broken or of the wrong kind."""

    exit_code = 3


class CapacityError(TallowError):
    """The machine has not enough memory or disk."""

    exit_code = 4


class Interrupted(TallowError):
    """The user (or a signal) stopped the work; what a stage has done is saved, and the same command goes on."""

    exit_code = 5


class WaitedInVain(Interrupted):
    """Other processes did not come, the main one perhaps: whoever waited says so."""


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn the operating system's complaints while reading `path` into a `DataError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist", "check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{what} {path} is a directory, not a file", "name a file") from error
    except PermissionError as error:
        raise DataError(f"{what} {path} cannot be read: permission denied", f"chmod +r {path}") from error
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror or error}", "check the path") from error


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn the operating system's complaints while writing `path` into user errors.

    Raises:
        CapacityError: The disk (or the user's quota) is full, or the file larger than any may be.
        UsageError: The place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise no_room(error, str(path)) from error  # no name for it here, or it would keep this frame alive
        if error.errno in NO_PLACE:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another place") from error
        raise


def is_full(error: OSError) -> bool:
    """Whether there is no room for what was to be written."""
    return error.errno in NO_SPACE or error.errno == errno.EFBIG


def no_room(error: OSError, path: str) -> CapacityError:
    """What to say where there is no room for what is written to `path`."""
    if error.errno == errno.EFBIG:
        return CapacityError(
            f"{path} would be larger than the limit on the size of a file",
            "raise it (ulimit -f unlimited) or choose another place, then run the command again",
        )
    return CapacityError(
        f"no space left on the disk while writing {path}",
        "free some space or choose another place, then run the command again",
    )
