from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.toys import (
    TIMINGS,
    loop_config,
    markov_batches,
    new_run,
    pack,
    tiny_model,
    transition_matrix,
    weights,
)

from tallow.data.batch import Packed
from tallow.errors import DataError, Interrupted, UsageError
from tallow.models.decoder import Decoder
from tallow.objectives import Example
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.run import StageRun
from tallow.train.checkpoint import Checkpoints
from tallow.train.config import LoopConfig
from tallow.train.loop import Batches, train


def learned(run: StageRun) -> list[dict[str, Any]]:
    """The metrics but for those that tell the time."""
    return [{key: value for key, value in record.items() if key not in TIMINGS} for record in run.metrics()]


def trained(
    directory: Path, config: LoopConfig, batches: Batches | None = None
) -> tuple[Decoder, list[dict[str, Any]]]:
    model, run = tiny_model(), new_run(directory)
    train(Layout(model), causal, batches or markov_batches(config), config, run)
    return model, learned(run)


def test_reaches_the_entropy_of_a_markov_chain(tmp_path: Path) -> None:
    config = loop_config(steps=150, batch_size=16, sequence_length=32, learning_rate=2e-2, warmup=0.1, log_every=50)
    model, _ = trained(tmp_path, config)

    log_matrix = transition_matrix().log()
    own = best = 0.0
    for step in range(1000, 1020):
        [packed] = markov_batches(config)(step)
        example = causal(packed)
        with torch.no_grad():
            log_probs = model.logits(model(example.inputs_BT, example.context)).log_softmax(-1)
        own -= log_probs.gather(-1, example.targets_BT[..., None]).mean().item() / 20
        best -= log_matrix[example.inputs_BT, example.targets_BT].mean().item() / 20
    assert best - 0.001 < own < best + 0.02


def uneven(config: LoopConfig, size: int) -> Batches:
    """The same rows in micro-batches of any size, with very different numbers of targets."""
    plain = markov_batches(config)

    def batches(step: int) -> list[Packed]:
        tokens_BT = torch.cat([packed.tokens_BT for packed in plain(step)])
        mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        for row in range(len(mask_BT)):
            mask_BT[row, : 4 * row] = False
        parts = zip(tokens_BT.split(size), mask_BT.split(size), strict=True)
        return [pack(tokens, mask) for tokens, mask in parts]

    return batches


@pytest.mark.parametrize("size", [1, 3])
def test_accumulation_equals_one_large_batch(tmp_path: Path, size: int) -> None:
    config = loop_config(steps=8)
    _, whole = trained(tmp_path / "whole", config, uneven(config, 4))
    _, parts = trained(tmp_path / "parts", config, uneven(config, size))
    for one, other in zip(whole, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_are_alike_bit_for_bit(tmp_path: Path, precision: str) -> None:
    config = loop_config(precision=precision)
    runs = [trained(tmp_path / name, config) for name in ("one", "other")]
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0]))
    assert runs[0][1] == runs[1][1]


def test_two_threads_compute_alike_each_time(tmp_path: Path) -> None:
    config = loop_config(steps=3, batch_size=32, sequence_length=64, precision="bf16")  # enough for both to have work
    torch.set_num_threads(2)
    try:
        runs = [trained(tmp_path / name, config)[0] for name in ("one", "other")]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(weights(runs[0]), weights(runs[1]))


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, precision: str) -> None:
    config = loop_config(precision=precision, save_every=3, validate_every=4)
    plain = markov_batches(config)

    def validate(layout: Layout) -> dict[str, float]:
        assert isinstance(layout.model, Decoder)
        return {"validation_loss": loop_loss(layout.model, causal(plain(999)[0]))}

    whole, whole_run = tiny_model(), new_run(tmp_path / "whole")
    result = train(Layout(whole), causal, plain, config, whole_run, validate=validate)

    # it dies at step 5 (after the checkpoint of 3), at 8 (after 6), and before it has saved anything
    for fatal in (2, 5, 8):

        def dying(step: int, fatal: int = fatal) -> list[Packed]:
            if step + 1 == fatal:
                raise Stop
            return plain(step)

        model = tiny_model()
        with pytest.raises(Stop):
            run = new_run(tmp_path / "parts")
            train(Layout(model), causal, dying, config, run, validate=validate)
    model, run = tiny_model(seed=7), new_run(tmp_path / "parts")
    resumed = train(Layout(model), causal, plain, config, run, validate=validate)

    assert torch.equal(weights(model), weights(whole))
    assert learned(run) == learned(whole_run)
    assert [record["step"] for record in learned(run)] == list(range(1, 13))
    assert {**resumed, "tokens_per_s": 0} == {**result, "tokens_per_s": 0}
    assert resumed["tokens"] == 12 * 4 * 16


def loop_loss(model: Decoder, example: Example) -> float:
    logits = model.logits(model(example.inputs_BT, example.context))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), example.targets_BT.flatten()).item()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = loop_config(steps=4)
    model, records = trained(tmp_path, config)
    again, run = tiny_model(seed=3), new_run(tmp_path)
    train(Layout(again), causal, markov_batches(config), config, run)
    assert torch.equal(weights(model), weights(again))
    assert learned(run) == records


def test_records_that_are_lost_after_the_last_step_are_no_error(tmp_path: Path) -> None:
    config = loop_config(steps=4)
    trained(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("")
    model, run = tiny_model(seed=1), new_run(tmp_path)
    result = train(Layout(model), causal, markov_batches(config), config, run)
    assert result == {"steps": 4, "tokens": 4 * 4 * 16, "skipped": 0}
    assert torch.equal(weights(model), weights(trained(tmp_path / "other", config)[0]))


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    config = loop_config(steps=4, save_every=1, keep_checkpoints=9)
    _, records = trained(tmp_path, config)
    shorter = loop_config(steps=2, save_every=1, keep_checkpoints=9)
    run = new_run(tmp_path, resume=False)
    train(Layout(tiny_model()), causal, markov_batches(shorter), shorter, run)
    assert [record["step"] for record in learned(run)] == [1, 2]
    assert learned(run)[0]["loss"] == records[0]["loss"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_other_settings_are_refused_but_not_those_of_reporting(tmp_path: Path) -> None:
    config = loop_config(steps=4)
    trained(tmp_path, config)
    trained(tmp_path, loop_config(steps=4, micro_batch_size=2, log_every=2, save_every=1, keep_checkpoints=1))
    with pytest.raises(UsageError, match="other settings"):
        trained(tmp_path, loop_config(steps=4, learning_rate=1.0))
    with pytest.raises(UsageError, match="other settings"):
        train(
            Layout(tiny_model()), causal, markov_batches(config), config, new_run(tmp_path), identity={"data": "other"}
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    config = loop_config()
    plain = markov_batches(config)
    whole, records = trained(tmp_path / "whole", config)
    before = signal.getsignal(number)

    def signalling(step: int) -> list[Packed]:
        if step == 4:
            os.kill(os.getpid(), number)
        return plain(step)

    run = new_run(tmp_path / "parts")
    with pytest.raises(Interrupted, match="step 5 of 12") as stopped:
        train(Layout(tiny_model()), causal, signalling, config, run)
    assert stopped.value.exit_code == 5
    assert "again" in stopped.value.hint
    assert signal.getsignal(number) == before
    assert (tmp_path / "parts" / "ledger.json").exists()

    model, run = tiny_model(seed=1), new_run(tmp_path / "parts")
    train(Layout(model), causal, plain, config, run)
    assert torch.equal(weights(model), weights(whole))
    assert learned(run) == records


def test_a_signal_while_the_last_checkpoint_is_written_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loop_config(save_every=5)
    whole, records = trained(tmp_path / "whole", config)
    begin = Checkpoints.begin

    def signalling(self: Checkpoints, step: int, *arguments: Any, **named: Any) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, step, *arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="step 12 of 12, which is saved"):
        patched.setattr(Checkpoints, "begin", signalling)
        trained(tmp_path / "parts", config)
    model, ended = trained(tmp_path / "parts", config)
    assert torch.equal(weights(model), weights(whole))
    assert ended == records


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    def impatient(step: int) -> list[Packed]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return markov_batches(loop_config())(step)

    with pytest.raises(KeyboardInterrupt):
        train(Layout(tiny_model()), causal, impatient, loop_config(), new_run(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_works_in_a_thread(tmp_path: Path) -> None:
    results: list[object] = []
    config = loop_config(steps=2)
    thread = threading.Thread(target=lambda: results.append(trained(tmp_path, config)))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_a_batch_without_targets_is_refused(tmp_path: Path) -> None:
    config = loop_config()

    def masked(step: int) -> list[Packed]:
        return [
            pack(packed.tokens_BT, torch.zeros_like(packed.trainable_BT)) for packed in markov_batches(config)(step)
        ]

    with pytest.raises(DataError, match="no token to learn"):
        train(Layout(tiny_model()), causal, masked, config, new_run(tmp_path))


def test_steps_must_be_known(tmp_path: Path) -> None:
    config = loop_config(steps=None)
    with pytest.raises(UsageError, match="steps"):
        train(Layout(tiny_model()), causal, markov_batches(config), config, new_run(tmp_path))


def test_frozen_parameters_stay_and_are_not_saved(tmp_path: Path) -> None:
    model, config = tiny_model(), loop_config(steps=3)
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    train(Layout(model), causal, markov_batches(config), config, new_run(tmp_path))
    assert torch.equal(model.embed.weight, before)
    assert not torch.equal(weights(model), weights(tiny_model()))


def test_a_checkpoint_is_saved_when_the_last_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    saved: list[int] = []
    monkeypatch.setattr(Checkpoints, "begin", lambda _self, step, *_, **_settings: saved.append(step))
    config = loop_config(save_seconds=35.0, save_every=1000)
    train(Layout(tiny_model()), causal, markov_batches(config), config, new_run(tmp_path))
    assert saved[-1] == 12
    assert len(saved) > 2


def test_metrics_tell_what_a_watcher_wants(tmp_path: Path) -> None:
    config = loop_config(steps=7, log_every=3, validate_every=2)
    run = new_run(tmp_path)
    result = train(
        Layout(tiny_model()), causal, markov_batches(config), config, run, validate=lambda _: {"validation_loss": 1.5}
    )
    assert [record["step"] for record in run.metrics()] == [2, 3, 4, 6, 7]
    last = run.metrics()[-1]
    learned = {"loss", "learning_rate", "gradient_norm", "tokens", "skipped", "update_ratio", "activation_max"}
    assert set(last) == {"step", "validation_loss", *learned, *TIMINGS}
    assert 0 < last["mfu"] < 1
    assert 0 < last["memory_bytes"] <= last["peak_memory_bytes"]
    assert last["tokens"] == 7 * 4 * 16
    assert last["tokens_per_s"] > 0
    assert result["loss"] == last["loss"]
    assert result["validation_loss"] == 1.5
    assert run.ledger.tokens == 7 * 4 * 16
    multiplied = 6 * sum(
        p.numel() for p in tiny_model().parameters() if p.ndim == 2
    )  # FLOPs of a token, attention apart
    assert multiplied < run.ledger.flops / run.ledger.tokens < 2 * multiplied
