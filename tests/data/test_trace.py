"""Every token can be traced to the document and the file that it came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.test_cli import run_tallow

from tallow.data.manifest import load_manifest
from tallow.data.trace import trace
from tallow.errors import DataError, UsageError
from tallow.stages import Recipe, run_recipe

TEXTS = [f"Number {number} is {'even' if number % 2 == 0 else 'odd'}, and that is all of it." for number in range(60)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    values = {
        "prepare": {"sources": [str(directory / "a.jsonl")]},
        "tokenizer": {"vocab_size": 300},
        "encode": {"shard_tokens": 500},
    }
    run_recipe(Recipe.parse(values), directory)
    return directory


def test_all_tokens_lead_to_their_text(run: Path) -> None:
    source = (run / "a.jsonl").read_bytes()
    [first, *more] = load_manifest(run / "encode" / "tokens").splits["train"].shards
    assert more
    shard = run / "encode" / "tokens" / "train" / first.name
    tokens = np.load(f"{shard}.npy")
    for number in range(0, first.tokens, 7):
        found = trace(shard, number)
        assert found.token == tokens[number]
        assert 0 <= found.position < found.length
        assert found.source == (run / "a.jsonl").as_posix()
        text = json.loads(source[found.offset :].splitlines()[0])["text"]
        told = (found.before + found.text + found.behind).removesuffix("<|endoftext|>")
        assert told
        assert told in text
    last = trace(shard.with_suffix(".npy"), first.tokens - 1)
    assert (last.position, last.behind) == (last.length - 1, "")


def test_by_the_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shard = run / "encode" / "tokens" / "validation" / "shard-00000"
    assert run_tallow(monkeypatch, "data", "trace", shard, "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"token", "document", "source", "offset", "position", "length", "before", "text", "behind"}
    assert run_tallow(monkeypatch, "data", "trace", shard, "3") == 0
    assert "a.jsonl" in capsys.readouterr().out
    assert run_tallow(monkeypatch, "data", "trace", shard, "999") == 2
    assert "0 to" in capsys.readouterr().err


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    tokens = run / "encode" / "tokens"
    with pytest.raises(DataError, match="no shard train/shard-00099"):
        trace(tokens / "train" / "shard-00099", 0)
    with pytest.raises(UsageError, match="no token"):
        trace(tokens / "train" / "shard-00000", -1)
    with pytest.raises(DataError, match="manifest"):
        trace(tmp_path / "train" / "shard-00000", 0)
