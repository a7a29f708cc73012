from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model

from tallow.cli import main
from tallow.errors import DataError
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.recipe import Section
from tallow.report import follow
from tallow.report.follow import Follower
from tallow.report.live import Watch
from tallow.report.watch import BARS, sparkline, watch
from tallow.run import STARTED, StageRun, lock_path
from tallow.train.loop import train


@contextmanager
def at_work(stage: Path) -> Iterator[None]:
    """As if a process worked there."""
    handle = os.open(lock_path(stage), os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def stage(run: Path, name: str, steps: int | None = 100) -> StageRun:
    (run / name).mkdir(parents=True)
    (run / name / STARTED).write_text("{}")
    made = StageRun(run / name)
    if steps is not None:
        made.plan(steps)
    return made


def shown(directory: Path, *, once: bool = True) -> str:
    output = io.StringIO()
    watch(directory, Console(file=output, width=100), once=once)
    return output.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> StageRun:
    made = stage(tmp_path / "mine", "pretrain")
    for step in range(10, 50, 10):
        made.log(step=step, loss=5 - step / 10, tokens=step * 64, tokens_per_s=640.0, step_s=0.5, skipped=1, mfu=0.43)
    made.log(step=40, validation_loss=1.5)
    record = {"step": 33, "action": "skipped", "reason": "its loss is nan", "rows": [1]}
    (made.directory / "anomalies.jsonl").write_text(json.dumps(record) + "\n")
    return made


def test_a_stopped_run_is_shown_once(run: StageRun) -> None:
    text = shown(run.directory.parent, once=False)
    for expected in ("pretrain  stopped", "step 40 of 100", "40%", "█▆▃▁", "1 · 1.5 held-out", "640", "0.5 s a step"):
        assert expected in text
    for expected in ("43.0% MFU", "1 left out", "step 33: its loss is nan"):
        assert expected in text
    assert "eta" not in text
    with at_work(run.directory):
        assert "eta 30.0 s" in shown(run.directory)


def test_it_follows_a_run_until_nobody_is_at_work(run: StageRun) -> None:
    looks: list[int] = []

    def sleep(_seconds: float) -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            run.log(step=50, loss=0.125)
            os.close(handle)

    handle = os.open(lock_path(run.directory), os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(handle, fcntl.LOCK_EX)
    output = io.StringIO()
    watch(run.directory, Console(file=output, width=100, force_terminal=True), sleep=sleep)
    assert len(looks) == 12
    assert "step 50 of 100" in output.getvalue()
    assert "0.125" in output.getvalue()


def test_of_a_run_the_stage_at_work_is_shown_or_the_last(run: StageRun) -> None:
    directory = run.directory.parent
    tune = stage(directory, "tune", steps=None)
    os.utime(run.metrics_path, (1, 1))
    os.utime(run.directory / STARTED, (1, 1))
    seen = Watch(directory)
    assert seen.look().directory == tune.directory
    with at_work(run.directory):
        assert seen.look().as_json()["stage"] == "pretrain"
        assert seen.look().latest["loss"] == 1.0
    assert seen.look().status == "stopped"
    assert seen.look().latest == {}
    assert "step" not in shown(tune.directory)


def test_what_a_real_run_leaves_is_understood(tmp_path: Path) -> None:
    config = loop_config(steps=6)
    run = new_run(tmp_path / "toy")
    run.begin("toy", Section(), {})
    train(Layout(tiny_model()), causal, markov_batches(config), config, run)
    found = Watch(tmp_path).look().as_json()
    assert (found["stage"], found["step"], found["steps"], found["eta_s"]) == ("toy", 6, 6, 0)
    assert found["loss"] == run.metrics()[-1]["loss"]
    text = shown(tmp_path)
    for name in ("update/weights", "largest activation", "learning rate", "at most", "waiting for data"):
        assert name in text


def test_a_stage_that_is_done(run: StageRun) -> None:
    (run.directory / "lineage.json").write_text("{}")
    assert "finished" in shown(run.directory)


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Watch(tmp_path / "none")
    with pytest.raises(DataError, match="no stage has begun"):
        Watch(tmp_path)


def test_on_the_command_line(
    run: StageRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tallow", "watch", str(run.directory.parent), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == 1.0
    assert found["anomalies"][0]["rows"] == [1]
    monkeypatch.setattr("sys.argv", ["tallow", "watch", str(run.directory), "--once"])
    with pytest.raises(SystemExit):
        main()
    assert "step 40 of 100" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tallow", "watch", str(run.directory / "none")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3


def lines(*values: Any) -> str:
    return "".join(json.dumps({"step": value}) + "\n" for value in values)


def test_records_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == ([], False)
    path.write_text(lines(1) + '{"step": 2')
    assert follower.read() == ([{"step": 1}], True)
    with path.open("a") as file:
        file.write("}\nbroken\n[1]\n" + lines(3))
    assert follower.read() == ([{"step": 2}, {"step": 3}], False)
    assert follower.read() == ([], False)
    other = tmp_path / "other"  # a run that goes back to an earlier step
    other.write_text(lines(1, 5, 6, 7))
    other.replace(path)
    assert follower.read() == ([{"step": 1}, {"step": 5}, {"step": 6}, {"step": 7}], True)
    path.unlink()
    assert follower.read() == ([], True)


def test_of_a_huge_file_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "WHOLE_BYTES", 5000)
    monkeypatch.setattr(follow, "END_BYTES", 1000)
    monkeypatch.setattr(follow, "SAMPLES", 8)
    monkeypatch.setattr(follow, "SAMPLE_BYTES", 64)
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(*range(10000)))
    found = [record["step"] for record in Follower(path).read()[0]]
    assert found == sorted(set(found))
    assert found[-30:] == list(range(9970, 10000))
    assert 30 < len(found) < 100
    assert found[1] < 2500


@given(st.lists(st.floats(), max_size=200), st.integers(1, 80))
def test_a_sparkline_fits_its_width_and_reaches_both_ends(values: list[float], width: int) -> None:
    curve = sparkline(values, width)
    assert len(curve) <= width
    assert set(curve) <= set(BARS)


def test_a_sparkline_falls_as_its_values_do() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == BARS[::-1]
    assert sparkline([4, 4, 2, 2], 2) == "█▁"
    assert sparkline([1.0], 9) == "▁"
    assert sparkline([-1.7e308, 1.7e308, 1.7e308], 3) == "▁██"
