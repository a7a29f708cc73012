"""A whole recipe in several processes: what two processes make is what one makes."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.processes import start

from tallow.cli import main
from tallow.files import hash_path
from tallow.models.formats import load_model
from tallow.run import StageRun
from tallow.stages import STAGES, Recipe, run_recipe

RECIPE = """
name: tiny
prepare: {sources: [text.txt], split: paragraphs}
tokenizer: {vocab_size: 264}
encode: {}
pretrain:
  model: {hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}
  loop: {steps: 4, batch_size: 4, sequence_length: 32, log_every: 1, precision: fp32}
compress: {bits: 8}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = ["the", "fox", "hen", "owl", "said", "to", "a", "good", "morning", "and", "went", "home"]
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_tallow(rank: int, port: int, directory: Path, options: Sequence[str]) -> None:
    """One of two processes, under the variables that torchrun sets; what it says goes into files."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(place)
    os.chdir(directory)
    sys.argv = ["tallow", "run", "tiny.yaml", "--run", "two", "--json", *options]
    with (directory / f"out{rank}").open("w") as sys.stdout, (directory / f"err{rank}").open("w") as sys.stderr:
        main()


def exit_codes(directory: Path, *options: Sequence[str]) -> list[int | None]:
    """Of two processes that do the recipe together, each with options of its own where any are given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    each = options or ((), ())
    processes = [start(run_tallow, rank, port, directory, each[rank]) for rank in range(2)]
    for process in processes:
        process.join(timeout=60)
    return [process.exitcode for process in processes]


def test_two_processes_make_what_one_makes(place: Path) -> None:
    assert exit_codes(place) == [0, 0]
    recipe = Recipe.load("tiny.yaml")
    said = (place / "err0").read_text()
    assert all(said.count(f"{name}: two/{name}\n") == 1 for name in recipe.stages)
    assert set(json.loads((place / "out0").read_text())["stages"]) == set(recipe.stages)
    assert (place / "out1").read_text() == (place / "err1").read_text() == "", "only the main process talks"
    assert not [path for path in (place / "two").rglob("*") if path.suffix in (".partial", ".old")]

    run_recipe(recipe, "one")
    for name in ("prepare", "tokenizer", "encode"):
        assert hash_path(place / "two" / name / STAGES[name].product) == hash_path(
            place / "one" / name / STAGES[name].product
        )
    alone, together = (StageRun(place / run / "pretrain").metrics() for run in ("one", "two"))
    assert [record["loss"] for record in together] == pytest.approx([record["loss"] for record in alone], abs=1e-5)
    single, several = (load_model(place / run / "pretrain" / "model").state_dict() for run in ("one", "two"))
    for name, value in single.items():
        torch.testing.assert_close(several[name], value, atol=1e-4, rtol=0)

    before = {path: path.stat().st_mtime_ns for path in (place / "two").rglob("*") if path.is_file()}
    run_recipe(recipe, "two")
    changed = {path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed <= {place / "two" / "resolved.yaml"}, "one process finds all of it done"


def test_what_stops_the_main_process_stops_all(place: Path) -> None:
    (place / "text.txt").write_bytes(bytes(range(256)))
    assert exit_codes(place) == [3, 5]
    assert json.loads((place / "out0").read_text())["error"]["message"].endswith("text.txt: is binary, not text)")
    assert (place / "out1").read_text() == (place / "err1").read_text() == "", "only the main process talks"
    assert not (place / "two" / "prepare" / "documents").exists()


def test_processes_with_different_recipes_do_nothing(place: Path) -> None:
    assert exit_codes(place, (), ("--set", "pretrain.loop.learning_rate=0.1")) == [2, 2]
    message = json.loads((place / "out0").read_text())["error"]["message"]
    assert message == "the processes were given different recipes: that of process 1 is not that of process 0"
    assert not (place / "two").exists()
