from __future__ import annotations

import importlib
import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model

from tallow.errors import UsageError
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.train import trackers
from tallow.train.loop import train
from tallow.train.trackers import tracking


def toy(directory: Path, **settings: object) -> StageRun:
    config, run = loop_config(**settings), new_run(directory)
    run.begin("toy", Section(), {})
    train(Layout(tiny_model()), causal, markov_batches(config), config, run)
    return run


def test_tensorboard_gets_what_is_recorded(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = toy(tmp_path, steps=4, trackers=["tensorboard"])
    with tracking(["tensorboard"], run, 2) as resumed:  # as if it had been killed after the checkpoint of step 2
        for record in run.metrics()[2:]:
            resumed.log(record["step"], record)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "gradient_norm", "tokens_per_s", "mfu", "update_ratio"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(record["step"], pytest.approx(record["loss"])) for record in run.metrics()]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run: the log format of LevelDB, with a header of 7 bytes."""
    data, place, block, parts = path.read_bytes(), 7, 32768, b""
    while place < len(data):
        if block - place % block < 7:  # the rest of a block has no room for a header
            place += block - place % block
        size, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_gets_what_is_recorded_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")  # made when it is imported
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = toy(tmp_path, steps=3, trackers=["wandb"])
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    records: list[Any] = []
    while not (records and records[-1].HasField("exit")):  # its own process writes them
        time.sleep(0.02)
        records = [messages.Record.FromString(data) for data in wandb_records(file)]
    histories = [record.history.item for record in records if record.HasField("history")]
    history = [{item.nested_key[0]: json.loads(item.value_json) for item in items} for items in histories]
    assert [(row["step"], row["loss"]) for row in history] == [
        (record["step"], record["loss"]) for record in run.metrics()
    ]


def test_a_resumed_run_keeps_its_id_and_another_has_its_own(tmp_path: Path) -> None:
    runs = [new_run(tmp_path / name) for name in ("one", "other")]
    [one, other], [again, _] = ([trackers._run_id(run) for run in runs] for _ in range(2))
    assert again == one != other


def failing(at: str) -> ModuleType:
    """A package `wandb` that raises where it is asked to."""

    class Run:
        def define_metric(self, *_names: object, **_settings: object) -> None: ...

        def log(self, _record: Mapping[str, Any]) -> None:
            if at == "log":
                raise OSError("the network is down")

        def finish(self) -> None:
            if at == "finish":
                raise OSError("the network is down")

    def init(**_settings: object) -> Run:
        if at == "init":
            raise OSError("the network is down")
        return Run()

    module = ModuleType("wandb")
    vars(module).update(init=init, Settings=dict, __spec__=ModuleSpec("wandb", None))
    return module


@pytest.mark.parametrize("at", ["init", "log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", failing(at))
    run = toy(tmp_path, steps=4, trackers=["wandb"])
    assert len(run.metrics()) == 4
    said = capsys.readouterr().err
    assert said.count("wandb has failed, and the run goes on without it: OSError: the network is down") == 1


def test_an_unknown_mode_is_said_and_borne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    monkeypatch.setitem(sys.modules, "wandb", failing("never"))
    with tracking(["wandb"], new_run(tmp_path), 0):
        pass
    assert "WANDB_MODE=sometimes is none of" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="tensorboard, which is not installed") as refused:
        loop_config(trackers=["tensorboard"])
    assert "tallow[trackers]" in refused.value.hint


def test_trackers_do_not_change_what_is_learned() -> None:
    assert loop_config(trackers=["tensorboard"]).result_settings() == loop_config().result_settings()


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(toy(tmp_path, steps=2).metrics()) == 2
