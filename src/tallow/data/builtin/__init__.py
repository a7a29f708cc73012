"""Text that comes with the package, for a first run without any download. SOURCE.md says where it is from."""

from __future__ import annotations

from pathlib import Path

from tallow.errors import DataError

PREFIX = "tallow:"
FILES = {"pepys": "pepys.jsonl.xz", "pepys_chat": "pepys_chat.jsonl.xz"}


def builtin(name: str) -> Path:
    """The file of a built-in data set, with or without the prefix `tallow:`.

    Raises:
        DataError: There is no data set of this name.
    """
    file = FILES.get(name.removeprefix(PREFIX))
    if file is None:
        known = ", ".join(PREFIX + known for known in FILES)
        raise DataError(f"there is no built-in data set {name}", f"known: {known}")
    return Path(__file__).with_name(file)
