"""What preparation goes by besides its tables: files and models, as they were when they were first looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tallow.data.sources import HashedFile, hashed_files
from tallow.files import file_stamps, hash_path
from tallow.recipe import Section


class Input(Section):
    """A file or directory.

    Args:
        name: What the user calls it.
        path: Where it was.
        sha256: Of its content.
        stamps: Sizes and times of its files (`file_stamps`).
    """

    name: str
    path: Path
    sha256: str
    stamps: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, name: str, path: Path, sha256: str) -> Input:
        """One whose hash is known already."""
        stamps = {file: (size, time) for file, (size, time) in file_stamps(path).items()}
        return cls(name=name, path=path.absolute(), sha256=sha256, stamps=stamps)

    def changed(self) -> bool:
        """Whether it holds something else now, or is gone; what has its old size and time is not read again."""
        if not self.path.exists():
            return True
        now = {file: (size, time) for file, (size, time) in file_stamps(self.path).items()}
        return now != self.stamps and hash_path(self.path) != self.sha256


class Inputs:
    """Hashes of files and models. What is asked for twice is looked at once, and what is known beforehand not at all.

    Args:
        known: By what it was asked for.
    """

    def __init__(self, known: Mapping[str, tuple[Input, ...]] | None = None) -> None:
        self.known = dict(known or {})

    def files(self, names: Iterable[str | Path]) -> tuple[HashedFile, ...]:
        """The files that names stand for.

        Raises:
            DataError: There is no such file.
        """
        names = tuple(map(str, names))
        key = f"files {json.dumps(names)}"
        if key not in self.known:
            self.known[key] = tuple(Input.of(file.name, file.path, file.sha256) for file in hashed_files(names))
        return tuple(HashedFile(name=each.name, sha256=each.sha256, path=each.path) for each in self.known[key])

    def model(self, name: str, find: Callable[[], Path]) -> Input:
        """A model.

        Args:
            name: How it is asked for.
            find: Tells where it is.

        Raises:
            DataError: It is not there.
        """
        key = f"model {name}"
        if key not in self.known:
            path = find()
            self.known[key] = (Input.of(name, path, hash_path(path)),)
        return self.known[key][0]
