"""Updates on copies of the weights; both are on the CPU here, which shows that all that is needed goes to and fro."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.test_optimizers import FREQUENT, METHODS, Stop
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train import optimizer
from tallow.train.loop import train
from tallow.train.optimizers.on_host import HostOptimizer
from tallow.train.validation import HeldOut


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if not method.updates_in_backward))
def test_nothing_changes_also_across_a_checkpoint(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"schedule": "constant", "warmup": 0, "optimizer": {"name": name, **FREQUENT.get(name, {})}}
    config = loop_config(steps=4, save_every=2, validate_every=1, **settings)
    batches = markov_batches(config)

    def dying(step: int) -> list[Packed]:
        if step == 3:
            raise Stop
        return batches(step)

    def learn(place: str, *, dies: bool = False) -> tuple[Tensor, list[float]]:
        model, run = tiny_model(), new_run(tmp_path / place)
        held_out = HeldOut(causal, batches(100))
        train(Layout(model), causal, dying if dies else batches, config, run, validate=held_out)
        return weights(model), [record["validation_loss"] for record in run.metrics()]

    expected, validation = learn("plain")
    with pytest.raises(Stop):
        learn("from plain to host", dies=True)
    monkeypatch.setattr(optimizer, "JointOptimizer", HostOptimizer)
    with pytest.raises(Stop):
        learn("host", dies=True)
    for place in ("host", "from plain to host"):
        found, scores = learn(place)
        assert torch.equal(found, expected)
        assert scores == validation


@pytest.mark.parametrize("dies_at", [None, 2, 3])
def test_copies_follow_what_the_outer_optimizer_makes_of_the_weights(
    tmp_path: Path, dies_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run goes on: from a checkpoint in the midst of a round, and from one at its end."""
    config = loop_config(steps=6, save_every=1, parallel={"local_steps": 3, "outer_learning_rate": 0.5})
    plain, expected, model = markov_batches(config), tiny_model(), tiny_model()

    def batches(step: int) -> list[Packed]:
        if step == dies_at:
            raise Stop
        return plain(step)

    train(Layout(expected, config.parallel), causal, plain, config, new_run(tmp_path / "plain"))
    monkeypatch.setattr(optimizer, "JointOptimizer", HostOptimizer)
    if dies_at is not None:
        with pytest.raises(Stop):
            train(Layout(tiny_model(), config.parallel), causal, batches, config, new_run(tmp_path / "host"))
    train(Layout(model, config.parallel), causal, plain, config, new_run(tmp_path / "host"))
    assert torch.equal(weights(model), weights(expected))


def test_what_is_optimized_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "JointOptimizer", HostOptimizer)
    parameter = nn.Parameter(torch.ones(3, 3))
    joint = optimizer.make_optimizer({"weight": parameter}, loop_config(weight_decay=0.0))
    assert joint.parameters["weight"] is not parameter
    parameter.grad = torch.ones(3, 3)
    joint.set_learning_rate(0.5)
    joint.step()
    joint.zero_grad()
    assert torch.allclose(parameter, torch.full((3, 3), 0.5))
    assert parameter.grad is None
    assert joint.parameters["weight"].grad is None
