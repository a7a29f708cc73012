"""Real text in many languages, and small vocabularies."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pytest

SAMPLE_CHARACTERS = 4000
SKIPPED = {".zip", ".ftz"}
OPEN: Mapping[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}


@pytest.fixture(scope="session")
def corpora(shared_data: Callable[..., Path]) -> dict[str, str]:
    """The beginning of each file of text in the shared data, by name."""
    found = {}
    for path in sorted(shared_data().glob("*/*")):
        if path.parent.name != "tokenizers" and path.suffix not in SKIPPED:
            with OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
                found[f"{path.parent.name}/{path.name}"] = beginning(file, ".jsonl" in path.name)
    return found


def beginning(file: TextIO, records: bool) -> str:
    if not records:
        return file.read(SAMPLE_CHARACTERS)
    text = ""
    for line in file:
        text += "\n".join(strings(json.loads(line)))
        if len(text) > SAMPLE_CHARACTERS:
            break
    return text[:SAMPLE_CHARACTERS]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
