from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tallow.data.sources import expand_globs, find_sources
from tallow.errors import DataError, TallowError, UsageError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one data set; what it was asked for."""
    asked: list[Any] = []
    for name in ("README.md", "train/a.jsonl", "train/b.jsonl", "test/c.jsonl", "logo.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def many(repository: str, allow_patterns: list[str], **options: Any) -> str:
        asked.append((repository, allow_patterns, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", many)
    return asked


def test_a_file_of_the_hub(hub: list[Any], tmp_path: Path) -> None:
    name = "hf://datasets/owner/some-set@v1.0/train/a.jsonl"
    (source,) = find_sources(expand_globs([name]))
    assert (source.name, source.path, source.kind) == (name, tmp_path / "train/a.jsonl", "jsonl")
    assert hub == [("owner/some-set", ["train/a.jsonl"], "v1.0")]


def test_all_data_files_below_a_path_of_the_hub(hub: list[Any]) -> None:
    assert [source.name for source in find_sources(["hf://datasets/owner/set/train"])] == [
        "hf://datasets/owner/set/train/a.jsonl",
        "hf://datasets/owner/set/train/b.jsonl",
    ]
    assert [source.name for source in find_sources(["hf://datasets/owner/set"])][1:] == [
        "hf://datasets/owner/set/test/c.jsonl",
        "hf://datasets/owner/set/train/a.jsonl",
        "hf://datasets/owner/set/train/b.jsonl",
    ]
    assert hub == [("owner/set", ["train/*"], None), ("owner/set", ["*"], None)]
    for name in ("nothing", "nothing.txt"):
        with pytest.raises(DataError, match="holds no data file"):
            find_sources([f"hf://datasets/owner/set/{name}"])


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), ConnectionError("no route")])
def test_without_a_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataError, match="there is no network") as caught:
        find_sources(["hf://datasets/owner/set/a.jsonl"])
    assert "HF_HOME" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["hf://", "hf://datasets/owner", "hf://models/owner/name/a.txt", "hf://datasets/o/n/../../x.txt"]
)
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(UsageError, match="does not name data on the hub"):
        find_sources([name])
    assert issubclass(UsageError, TallowError)
