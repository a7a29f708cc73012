from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallow.data.read import Document, Piece, ReadSettings, read_piece
from tallow.data.records import Rejected
from tallow.data.sources import find_sources

Read = Callable[..., list[Document]]


@pytest.fixture
def rejected(tmp_path: Path) -> Rejected:
    return Rejected(tmp_path / "rejected.log")


@pytest.fixture
def read(rejected: Rejected) -> Read:
    """`read(path, …)`: the documents of a file, or of the bytes of it that `begin` and `end` say."""

    def run(path: Path, begin: int = 0, end: int | None = None, **settings: Any) -> list[Document]:
        chosen = ReadSettings(**settings)
        sources = find_sources([path], chosen.directories)
        return [document for source in sources for document in read_piece(Piece(source, begin, end), chosen, rejected)]

    return run
