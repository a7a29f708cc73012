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
