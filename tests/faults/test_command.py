"""The whole command, stopped from outside or by the numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.processes import start

from tallow.cli import main
from tallow.files import hash_path
from tallow.stages import Recipe, run_recipe

STEPS = 250
RECIPE = f"""
prepare: {{sources: [text.txt], split: paragraphs}}
tokenizer: {{vocab_size: 264}}
encode: {{}}
pretrain:
  model: {{hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}}
  loop: {{steps: {STEPS}, batch_size: 4, sequence_length: 32, log_every: 1}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = ["the", "fox", "hen", "owl", "said", "to", "a", "good", "morning", "and", "went", "home"]
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_stopped(place: Path) -> None:
    """The command, in the foreground group of a terminal; what it says goes into files."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    os.chdir(place)
    sys.argv = ["tallow", "run", "tiny.yaml", "--run", "stopped"]
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):  # a handler of signals writes by the descriptor
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    main()


def test_control_c_saves_says_how_to_go_on_and_the_same_command_does(place: Path) -> None:
    """As a terminal does it: SIGINT goes to every process of the foreground group."""
    process = start(run_stopped, place)
    metrics = place / "stopped" / "pretrain" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < 3:
        assert process.is_alive(), (place / "err").read_text()
        time.sleep(0.002)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join(timeout=60)
    printed, said = (place / "out").read_text(), (place / "err").read_text()
    assert process.exitcode == 5
    assert printed == ""
    assert "stopping after this step" in said
    assert "error: training stopped after step" in said
    assert "→ run the same command again to go on from there" in said
    assert "Traceback" not in said
    done = len(metrics.read_bytes().splitlines())
    assert 3 <= done < STEPS

    recipe = Recipe.load("tiny.yaml")
    run_recipe(recipe, "stopped")
    assert len(metrics.read_bytes().splitlines()) == STEPS
    # as it was resolved, so that the precision is the same
    run_recipe(Recipe.load("stopped/resolved.yaml"), "whole")
    assert hash_path(place / "stopped/pretrain/model") == hash_path(place / "whole/pretrain/model")


def test_divergence_is_one_sentence_with_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "pretrain.loop.learning_rate=1e30", "--set", "pretrain.loop.precision=fp32"]
    monkeypatch.setattr(sys, "argv", ["tallow", "run", "tiny.yaml", "--run", "run", "--json", *settings])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert re.fullmatch(r"training diverged at step \d+: .* so many bad batches \(21\) are not borne", error["message"])
    assert error["hint"].startswith("lower loop.learning_rate or lengthen loop.warmup")
    assert not (place / "run" / "pretrain" / "model").exists()
