from __future__ import annotations

import math
import os
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.toys import (
    TIMINGS,
    VOCABULARY,
    loop_config,
    markov_batches,
    new_run,
    tiny_model,
    weights,
)
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import DataError, Interrupted, TallowError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.run import StageRun
from tallow.train.anomaly_log import AnomalyLog
from tallow.train.config import LoopConfig
from tallow.train.guard import Guard
from tallow.train.loop import Batches, train
from tallow.train.update import Updater


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


def numbered(batches: Batches) -> Batches:
    """The same batches, with a number for each row."""

    def with_numbers(step: int) -> list[Packed]:
        [packed] = batches(step)
        rows = len(packed.tokens_BT)
        return [replace(packed, numbers_B=torch.arange(step * rows, (step + 1) * rows))]

    return with_numbers


def poisoned(
    model: Decoder, batches: Batches, bad_steps: Collection[int], dies_at: int | None = None, factor: float = math.nan
) -> Batches:
    """Batches in which the model computes what is not a number, or logits times a factor."""
    is_bad = False

    def poison(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * factor if is_bad else output

    def chosen(step: int) -> list[Packed]:
        nonlocal is_bad
        if step + 1 == dies_at:
            raise Stop
        is_bad = step + 1 in bad_steps
        return list(batches(step))

    model.norm.register_forward_hook(poison)
    return chosen


def trained(directory: Path, config: LoopConfig, bad_steps: Collection[int], dies_at: int | None = None) -> Decoder:
    model = tiny_model()
    batches = poisoned(model, numbered(markov_batches(config)), bad_steps, dies_at)
    train(Layout(model), causal, batches, config, new_run(directory))
    return model


def learned(directory: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in TIMINGS} for record in StageRun(directory).metrics()
    ]


def test_a_bad_batch_changes_nothing_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = loop_config()
    model = trained(tmp_path, config, {5, 9})

    expected = tiny_model()
    updater, batches = Updater(Layout(expected), causal, config), markov_batches(config)
    for step, record in enumerate(learned(tmp_path), 1):
        if step not in (5, 9):
            updater.update(step, batches(step - 1), record["learning_rate"], "fp32")
    assert torch.equal(weights(model), weights(expected))

    records = learned(tmp_path)
    assert [record["skipped"] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
    assert ["loss" in record for record in records] == [step not in (5, 9) for step in range(1, 13)]
    assert records[4]["update_ratio"] == 0 < records[3]["update_ratio"]
    noted = AnomalyLog(tmp_path).read()
    assert [record["step"] for record in noted] == [5, 9]
    assert noted[0]["rows"] == [16, 17, 18, 19]
    assert (noted[0]["action"], noted[0]["loss"], noted[0]["reason"]) == ("skipped", None, "its loss is nan")
    assert capsys.readouterr().err.count("the batch of step 5 is left out: its loss is nan (rows 16, 17, 18, 19)") == 1


@pytest.mark.parametrize("dies_at", [5, 6, 8, 11])
def test_a_resumed_run_leaves_out_what_an_uninterrupted_one_does(tmp_path: Path, dies_at: int) -> None:
    config = loop_config(save_every=3)
    whole = trained(tmp_path / "whole", config, {5, 10})
    with pytest.raises(Stop):
        trained(tmp_path / "parts", config, {5, 10}, dies_at)
    parts = trained(tmp_path / "parts", config, {5, 10})
    assert torch.equal(weights(parts), weights(whole))
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    assert AnomalyLog(tmp_path / "parts").read() == AnomalyLog(tmp_path / "whole").read()


def test_a_spike_is_left_out(tmp_path: Path) -> None:
    """A batch of noise, once the toy is nearly learned."""
    anomalies = {"warmup": 20, "window": 40}
    config = loop_config(steps=110, batch_size=32, sequence_length=32, learning_rate=2e-2, anomalies=anomalies)
    plain = numbered(markov_batches(config))

    def batches(step: int) -> list[Packed]:
        [packed] = plain(step)
        if step + 1 == 105:
            noise_BT = torch.randint_like(packed.tokens_BT, VOCABULARY)
            packed = replace(packed, tokens_BT=noise_BT)
        return [packed]

    train(Layout(tiny_model()), causal, batches, config, new_run(tmp_path))
    [noted] = AnomalyLog(tmp_path).read()
    assert noted["step"] == 105
    assert noted["reason"].endswith("is a spike")
    assert noted["loss"] > 1.5


@pytest.mark.parametrize("optimizer", ["lomo", "adalomo"])
def test_a_spike_that_is_learned_before_it_can_be_told_is_not_said_to_be_left_out(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, threshold: float | None) -> Tensor:
        config = loop_config(optimizer=optimizer, anomalies={"threshold": threshold, "warmup": 4})
        model = tiny_model()
        spiked = poisoned(model, poisoned(model, numbered(markov_batches(config)), {5}), {9}, factor=30.0)
        train(Layout(model), causal, spiked, config, new_run(tmp_path / name))
        return weights(model)

    assert torch.equal(run("judged", 10), run("not judged", None))
    noted = [(record["step"], record["action"]) for record in AnomalyLog(tmp_path / "judged").read()]
    assert noted == [(5, "skipped"), (9, "learned")]
    said = capsys.readouterr().err
    assert "the batch of step 9 is bad, but learned by now: its loss of" in said
    assert said.count("is left out") == 2


def test_a_model_that_is_broken_from_the_start_is_named(tmp_path: Path) -> None:
    config, model = loop_config(), tiny_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="model that training starts from"):
        train(Layout(model), causal, markov_batches(config), config, new_run(tmp_path))


def test_more_bad_batches_than_are_borne_end_the_run(tmp_path: Path) -> None:
    config = loop_config(anomalies={"budget": 2})
    with pytest.raises(
        TallowError, match=r"diverged at step 7: its loss is nan, and so many bad batches \(3\)"
    ) as ended:
        trained(tmp_path, config, {3, 5, 7})
    assert ended.value.exit_code == 1
    assert "learning_rate" in ended.value.hint
    with pytest.raises(TallowError, match="step 1"):
        trained(tmp_path / "none", loop_config(anomalies={"budget": 0}), {1})


def test_a_run_of_mostly_bad_batches_is_not_done(tmp_path: Path) -> None:
    config = loop_config(anomalies={"patience": 99})
    for _ in range(2):  # also when it goes on from its last checkpoint
        with pytest.raises(TallowError, match="diverged at step 12: 11 of 12 batches were bad"):
            trained(tmp_path, config, range(2, 13))


def test_the_result_tells_what_was_left_out(tmp_path: Path) -> None:
    config, model = loop_config(), tiny_model()
    batches = poisoned(model, markov_batches(config), {5, 9})
    for _ in range(2):
        assert train(Layout(model), causal, batches, config, new_run(tmp_path))["skipped"] == 2


def break_weights(model: Decoder, batches: Batches, at: int) -> Batches:
    """Weights that are not finite any more when this step begins, once."""
    broken = False

    def breaking(step: int) -> list[Packed]:
        nonlocal broken
        if step + 1 == at and not broken:
            broken = True
            with torch.no_grad():
                model.embed.weight[0, 0] = float("nan")
        return list(batches(step))

    return breaking


def test_broken_weights_are_taken_back_from_the_newest_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = loop_config(save_every=1, anomalies={"patience": 2})
    model = tiny_model()
    batches = break_weights(model, markov_batches(config), at=7)
    result = train(Layout(model), causal, batches, config, new_run(tmp_path))
    assert weights(model).isfinite().all()
    records = learned(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert ["loss" in record for record in records] == [step != 7 for step in range(1, 13)]
    assert result["tokens"] == records[-1]["tokens"] == 11 * 64
    assert "going back to step 6, and on without the batches of steps 5 to 7" in capsys.readouterr().err
    assert [record["action"] for record in AnomalyLog(tmp_path).read()] == ["skipped", "rolled back"]


def test_broken_weights_of_which_there_are_no_better_ones(tmp_path: Path) -> None:
    config, model = loop_config(), tiny_model()
    batches = break_weights(model, markov_batches(config), at=7)
    with pytest.raises(TallowError, match="step 7: the weights are not finite"):
        train(Layout(model), causal, batches, config, new_run(tmp_path))


def test_after_several_bad_batches_it_goes_back_to_before_the_suspects(tmp_path: Path) -> None:
    config = loop_config(save_every=2, keep_checkpoints=9, anomalies={"patience": 2})
    whole = trained(tmp_path / "whole", config, {8, 9})
    assert AnomalyLog(tmp_path / "whole").read()[-1] == {
        "step": 9,
        "action": "rolled back",
        "to": 4,
        "avoided": [6, 9],
    }
    records = learned(tmp_path / "whole")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["step"] for record in records if "loss" not in record] == [6, 7, 8, 9]
    expected = tiny_model()
    updater, batches = Updater(Layout(expected), causal, config), markov_batches(config)
    for record in records:
        if "loss" in record:
            updater.update(record["step"], batches(record["step"] - 1), record["learning_rate"], "fp32")
    assert torch.equal(weights(whole), weights(expected))

    with pytest.raises(Stop):  # on the way from step 4, to which it has gone back: it must not forget that
        model = tiny_model()
        batches = poisoned(model, numbered(markov_batches(config)), {8, 9})
        seen: list[int] = []

        def dying(step: int) -> list[Packed]:
            seen.append(step)
            if seen.count(4) == 2:
                raise Stop
            return list(batches(step))

        train(Layout(model), causal, dying, config, new_run(tmp_path / "parts"))
    parts = trained(tmp_path / "parts", config, ())  # what was poison is not so any more, and is left out nevertheless
    assert torch.equal(weights(parts), weights(whole))
    assert AnomalyLog(tmp_path / "parts").read() == AnomalyLog(tmp_path / "whole").read()


def test_killed_while_it_goes_back_it_goes_back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loop_config(save_every=2, keep_checkpoints=9, anomalies={"patience": 2})
    whole = trained(tmp_path / "whole", config, {8, 9})

    def killed(*_arguments: object) -> None:
        raise Stop

    for name in ("shutil.rmtree", "write_json"):
        model = tiny_model()
        batches = poisoned(model, numbered(markov_batches(config)), {8, 9})
        with monkeypatch.context() as patch:

            def fatal(step: int, name: str = name, batches: Batches = batches, patch: Any = patch) -> list[Packed]:
                if step + 1 == 9:
                    patch.setattr(f"tallow.train.checkpoint.{name}", killed)
                return list(batches(step))

            with pytest.raises(Stop):
                train(Layout(model), causal, fatal, config, new_run(tmp_path / "parts"))
    parts = trained(tmp_path / "parts", config, {8, 9})
    assert torch.equal(weights(parts), weights(whole))
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")


def test_weights_in_doubt_are_not_saved(tmp_path: Path) -> None:
    config = loop_config(save_every=1, keep_checkpoints=2, anomalies={"patience": 99})
    with pytest.raises(Stop):
        trained(tmp_path, config, {5, 6, 7, 8}, dies_at=9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("optimizer", ["adamw", "sophia", "muon", "schedule_free", "adamw8bit"])
def test_nothing_that_the_optimizer_remembers_is_touched(tmp_path: Path, optimizer: str) -> None:
    """At step 11, where Sophia would measure the curvature."""
    config = loop_config(optimizer=optimizer)
    model = tiny_model()
    updater = Updater(Layout(model), causal, config)
    guard = Guard(updater, config.anomalies, new_run(tmp_path))
    batches = poisoned(model, markov_batches(config), {11})
    for step in range(1, 11):
        guard.update(step, batches(step - 1), 1e-3, "fp32")
    before = {name: value.clone() for name, value in updater.optimizer.state()[0].items()}
    kept = weights(model).clone()
    guard.update(11, batches(10), 1e-3, "fp32")
    guard.confer()
    assert guard.skipped == 1
    after = updater.optimizer.state()[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(weights(model), kept)
    guard.update(12, batches(11), 1e-3, "fp32")
    assert not torch.equal(weights(model), kept)


def test_experts_do_not_count_what_was_left_out(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 16}
    experts = {"num_experts": 4, "experts_per_token": 1, "router_balance": "bias", "router_balance_weight": 0.02}
    model = Decoder(DecoderConfig.model_validate({"vocab_size": VOCABULARY, "max_positions": 64, **shape, **experts}))
    initialize(model, seed=0)
    config = loop_config()
    guard = Guard(Updater(Layout(model), causal, config), config.anomalies, new_run(tmp_path))
    [mixture] = model.mixtures()
    assert mixture.router.bias is not None
    batches = poisoned(model, markov_batches(config), {1})
    guard.update(1, batches(0), 1e-3, "fp32")
    assert mixture.router.bias.abs().max() == 0
    assert model.take_loads().sum() == 0


def test_an_interrupted_run_is_saved_although_its_batches_are_bad(tmp_path: Path) -> None:
    config = loop_config(save_every=100)
    model = tiny_model()
    plain = poisoned(model, markov_batches(config), {5, 6})

    def interrupting(step: int) -> list[Packed]:
        if step + 1 == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return list(plain(step))

    with pytest.raises(Interrupted, match="step 5 of 12"):
        train(Layout(model), causal, interrupting, config, new_run(tmp_path))
    resumed = trained(tmp_path, config, {5, 6})
    assert torch.equal(weights(resumed), weights(trained(tmp_path / "whole", config, {5, 6})))
