"""What is kept on disk: training is the same to the bit, and memory is spared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_optimizers import FREQUENT, METHODS, Stop
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.offload import windows

WITH_STATE = sorted(name for name, method in METHODS.items() if not method.updates_in_backward)
DISK = {"state": "disk"}


@pytest.fixture(autouse=True)
def _windows_for_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several windows in a toy, and everything in the file that can be there."""
    monkeypatch.setattr(windows, "WINDOW_BYTES", 9000)
    monkeypatch.setattr(windows, "SMALL_BYTES", 1)


def settings(name: str, offload: dict[str, Any]) -> LoopConfig:
    return loop_config(steps=4, save_every=2, optimizer={"name": name, **FREQUENT.get(name, {})}, offload=offload)


@pytest.mark.parametrize("name", WITH_STATE)
def test_nothing_changes_also_across_a_checkpoint(tmp_path: Path, name: str) -> None:
    plain, disk = settings(name, {}), settings(name, DISK)
    batches = markov_batches(plain)

    def dying(step: int) -> list[Packed]:
        if step == 3:
            raise Stop
        return batches(step)

    def learn(place: str, config: LoopConfig, *, dies: bool = False) -> torch.Tensor:
        model = tiny_model()
        train(Layout(model), causal, dying if dies else batches, config, new_run(tmp_path / place))
        return weights(model)

    expected = learn("plain", plain)
    assert torch.equal(learn("disk", disk), expected)
    assert not torch.equal(weights(tiny_model()), expected)
    for place, before, after in (("there", plain, disk), ("back", disk, plain)):
        with pytest.raises(Stop):
            learn(place, before, dies=True)
        assert torch.equal(learn(place, after), expected), place


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_an_optimizer_without_state_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        settings(name, DISK)
